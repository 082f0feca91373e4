"""Which layout a model gets: trees where they are proven for this very model, else padded sequences.

Three gates, all needed: what the model declares of itself, a leak test (the tokens of one branch must not move another
branch's log-probs), and a numeric check against the model's own plain forward.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prefopt.data.tokens import Ids
from prefopt.engine.forward import install, uninstall, unwrap
from prefopt.engine.layout import Layout, Tree, lay_out
from prefopt.errors import UserError

logger = logging.getLogger(__name__)

# A sliding window up to this length is probed with a prompt longer than it.
PROBED_WINDOW = 1024
# Largest error of one token's log-prob, in nats, by the precision of the weights.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-4, torch.bfloat16: 0.25, torch.float16: 0.05}


@dataclass(frozen=True)
class Verdict:
    """The layout of a model, and the reason in words."""

    layout: Layout
    reason: str


def choose_layout(model: Any, wish: str = "auto") -> Verdict:
    """The layout to use for `model`; found once and remembered on the model.

    Args:
        model: a causal language model, wrapped or not.
        wish: "auto", "tree" (refused unless the gates pass) or "padded".

    Raises:
        UserError: `tree` was asked for and a gate failed, or no layout reproduces the model's own log-probs.
    """
    if wish not in ("auto", "tree", "padded"):
        raise UserError(f"layout {wish!r} is not one of auto, tree, padded")
    causal = unwrap(model)
    verdict: Verdict | None = causal.__dict__.get("_prefopt_verdict")
    if verdict is None:
        verdict = _judge(model, causal)
        causal.__dict__["_prefopt_verdict"] = verdict
        logger.info("layout %s: %s", verdict.layout, verdict.reason)
    if wish == "padded":
        return Verdict("padded", "asked for")
    if wish == "tree" and verdict.layout != "tree":
        raise UserError(f"layout=tree is not safe for {type(causal).__name__}: {verdict.reason}; use layout=auto")
    return verdict


def static_gate(causal: Any) -> str | None:
    """Why a model's own declarations rule trees out, or None."""
    config = causal.config.get_text_config()
    if getattr(causal, "_is_stateful", False):
        return "it has layers that carry state from token to token"
    if not getattr(causal, "_supports_attention_backend", False):
        return "its attention cannot be replaced"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if not kinds <= {"full_attention", "sliding_attention"}:
        return f"layers of type {sorted(kinds - {'full_attention', 'sliding_attention'})} are not supported"
    return None


def _judge(model: Any, causal: Any) -> Verdict:
    name = type(causal).__name__
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            probes = _probes(causal.config.get_text_config())
            uninstall(model)
            truth = [_plain(model, tree) for tree in probes]
            tolerance = TOLERANCE.get(next(model.parameters()).dtype, 0.25)
            error = _error(truth, _laid_out(model, probes, "padded"))
            if error > tolerance:
                raise UserError(
                    f"the log-probs of {name} cannot be reproduced from its last hidden states and its output "
                    f"embedding ({error:.2g} nats off on a token): this architecture is not supported"
                )
            reason = static_gate(causal) or _tree_fails(model, probes, truth, max(tolerance, 4 * error))
    finally:
        model.train(training)
    if reason is not None:
        install(model, "padded")
        return Verdict("padded", f"{name}: {reason}")
    install(model, "tree")
    return Verdict("tree", f"{name}: passed the leak test and the numeric check")


def _tree_fails(model: Any, probes: list[Tree], truth: list[NDArray[np.float64]], tolerance: float) -> str | None:
    try:
        first = _laid_out(model, probes, "tree")
        changed = [Tree(t.prompt, (*t.branches[:-1], t.branches[-1][::-1].copy())) for t in probes]
        second = _laid_out(model, changed, "tree")
    except (NotImplementedError, RuntimeError, TypeError, ValueError, IndexError) as error:
        return f"the tree layout does not run ({type(error).__name__}: {str(error).splitlines()[0]})"
    at = 0
    for tree in probes:
        for branch in tree.branches[:-1]:
            leak = float(np.abs(first[at] - second[at]).max())
            if leak > tolerance:
                return f"changing one branch moves another by {leak:.2g} nats (leak test)"
            at += 1
        at += 1
        del branch
    error = _error(truth, first)
    if error > tolerance:
        return f"log-probs are {error:.2g} nats off a plain forward (numeric check)"
    return None


def _probes(config: Any) -> list[Tree]:
    """A few trees of random tokens: short, long enough to be cut into pieces, longer than a sliding window."""
    rng = np.random.default_rng(0)
    window = getattr(config, "sliding_window", None)
    limit = int(getattr(config, "max_position_embeddings", None) or 2**20)
    long = window + 7 if isinstance(window, int) and window <= PROBED_WINDOW else 11

    def ids(n: int) -> Ids:
        return rng.integers(0, config.vocab_size, n).astype(np.int32)

    shapes = [(5, (4, 7)), (9, (1, 3, 6)), (min(long, limit - 8), (6, 5))]
    return [Tree(ids(prompt), tuple(ids(n) for n in branches)) for prompt, branches in shapes]


def _plain(model: Any, tree: Tree) -> NDArray[np.float64]:
    """Per-token log-probs of all branches by the model's own forward, one unpadded sequence at a time."""
    device = next(model.parameters()).device
    parts = []
    for branch in tree.branches:
        ids = torch.from_numpy(np.concatenate((tree.prompt, branch)).astype(np.int64))[None].to(device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(tree.prompt) - 1 : -1].double()
        logp = logits - logits.logsumexp(-1, keepdim=True)
        parts.append(logp.gather(1, ids[0, len(tree.prompt) :, None])[:, 0].cpu().numpy())
    return np.concatenate(parts)


def _laid_out(model: Any, trees: list[Tree], layout: Layout) -> list[NDArray[np.float64]]:
    """Per-token log-probs of each branch, all trees in one row."""
    install(model, layout)
    row = lay_out(trees, layout).to(next(model.parameters()).device)
    logp = model(prefopt_row=row).logp.double().cpu().numpy()
    return np.split(logp, np.cumsum(row.num_tokens.cpu().numpy())[:-1])


def _error(truth: list[NDArray[np.float64]], branches: list[NDArray[np.float64]]) -> float:
    got = np.concatenate(branches)
    error = float(np.abs(np.concatenate(truth) - got).max())
    return error if np.isfinite(error) else float("inf")
