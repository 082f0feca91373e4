"""Chooses a model's layout: trees where they are proven for this very model, else padded sequences.

Trees must pass three gates: what the model declares of itself, a leak test (the tokens of one branch must not move
another branch's log-probs), and a numeric check against the model's own plain forward. Before them, for either layout:
the engine must know what the model does to the output of its projection, and padded sequences must reproduce its
log-probs. Of a reward model the scores are judged in place of log-probs: its own classifier reads them where it takes a
text to end. A model that takes images must pass all of this with images, too.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefopt.data.images.inputs import ImageInputs, inputs_of
from prefopt.data.tokens import Ids
from prefopt.engine.attention import NAME
from prefopt.engine.cpu import install
from prefopt.engine.forward import (
    attention_name,
    attention_of,
    check_model,
    evaluating,
    is_reward_model,
    score_row,
    unwrap,
)
from prefopt.engine.head import Head, TokenStats
from prefopt.engine.image_arguments import image_call, with_images
from prefopt.engine.image_probes import image_probes, special_tokens
from prefopt.engine.layout import Layout, Tree, lay_out
from prefopt.engine.limits import steady_positions
from prefopt.errors import PrefoptError, Stopped, UserError, first_line

logger = logging.getLogger(__name__)

Images = tuple[ImageInputs | None, frozenset[int]]  # what a model makes of images, and tokens that stand for them
Logps = list[NDArray[np.float64]]  # per token, of each branch

# A sliding window up to this length is probed with a prompt longer than it.
PROBED_WINDOW = 1024
# How far two correct computations of one token's log-prob may be apart, in nats, by the precision of the weights:
# random tokens have logits of 20 and more, which bfloat16 knows to 0.06 each. A wrong one is off by whole nats.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-4, torch.bfloat16: 1.0, torch.float16: 0.2}
# Trees may be this many times as far off a plain forward as padded sequences are, or as `FLOOR` where those are exact.
MARGIN = 3
FLOOR = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 0.06, torch.float16: 0.01}


@dataclass(frozen=True)
class LayoutVerdict:
    """The layout of a model, and the reason for it."""

    layout: Layout
    reason: str


# The verdicts on a model, by its number of layers with adapters, which may be added later.
_VERDICTS: weakref.WeakKeyDictionary[Any, dict[int, LayoutVerdict]] = weakref.WeakKeyDictionary()


def choose_layout(model: Any, layout: str = "auto") -> LayoutVerdict:
    """The layout to use for a model, which is judged once.

    Args:
        model: a causal language model, wrapped or not.
        layout: "auto", "tree" (an error unless the gates pass) or "padded".

    Raises:
        UserError: trees are asked for and a gate failed, or no layout reproduces the model's own log-probs.
    """
    if layout not in ("auto", "tree", "padded"):
        raise UserError(f"layout {layout!r} is not one of auto, tree, padded")
    check_model(model)
    causal = unwrap(model)
    verdicts = _VERDICTS.setdefault(causal, {})
    adapters = sum(hasattr(module, "merged_adapters") for module in causal.modules())
    if adapters not in verdicts:
        verdicts[adapters] = _judge(model, causal)
        logger.info("layout %s: %s", verdicts[adapters].layout, verdicts[adapters].reason)
    verdict = verdicts[adapters]
    if layout == "padded":
        return LayoutVerdict("padded", "asked for")
    if layout == "tree" and verdict.layout != "tree":
        raise UserError(f"layout=tree is not safe for {type(causal).__name__}: {verdict.reason}; use layout=auto")
    return verdict


def passed_as_trees(causal: Any) -> bool:
    """Whether a model has passed the gates for trees."""
    return any(verdict.layout == "tree" for verdict in _VERDICTS.get(causal, {}).values())


def _judge(model: Any, causal: Any) -> LayoutVerdict:
    name = type(causal).__name__
    dtype = next(model.parameters()).dtype
    with evaluating(model), torch.no_grad(), _full_precision(next(model.parameters()).device.type):
        inputs = inputs_of(causal)
        kept = frozenset() if inputs is None else special_tokens(inputs, causal.config)
        probes = _probes(causal.config.get_text_config(), closing=is_reward_model(causal), kept=kept)
        if inputs is not None:
            inputs, pictured = image_probes(inputs, causal.config, closing=is_reward_model(causal))
            probes += pictured
        if not is_reward_model(causal):
            _check_logit_transform(model, causal, probes[0])
        expected = [logps for tree in probes for logps in _plain_logps(model, tree, inputs)]
        if inputs is not None:
            _check_causal(model, probes, expected, (inputs, kept))
        try:
            error = _error(_row_logps(causal, probes, "padded", inputs)[0], expected)
        except (PrefoptError, torch.OutOfMemoryError):  # a signal among them
            raise
        except Exception as problem:  # a model may do anything with a call it was not written for
            raise UserError(f"{name} is not supported: {first_line(problem)}") from problem
        if error > TOLERANCE.get(dtype, 1.0):
            raise UserError(
                f"the {'scores' if is_reward_model(causal) else 'log-probs'} of {name} cannot be reproduced from its "
                f"last hidden states and its output layer ({error:.2g} off): this architecture is not supported"
            )
        allowed = max(FLOOR.get(dtype, 0.06), MARGIN * error)
        reason = _static_gate(causal) or _numeric_gates(causal, probes, expected, allowed, (inputs, kept))
    if reason is not None:
        return LayoutVerdict("padded", f"{name}: {reason}")
    return LayoutVerdict("tree", f"{name}: passed the leak test and the numeric check")


@contextlib.contextmanager
def _full_precision(device: str) -> Iterator[None]:
    """No autocast and no TF32: the gates judge the layout, not the rounding."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def rounding(model: Any) -> float:
    """How far two correct computations of one token's log-prob may be apart as a model runs now, in nats."""
    weight = next(model.parameters())
    found = [TOLERANCE.get(weight.dtype, 1.0)]
    if torch.get_float32_matmul_precision() != "highest":
        found.append(0.1)
    if torch.is_autocast_enabled(weight.device.type):
        found.append(TOLERANCE.get(torch.get_autocast_dtype(weight.device.type), 1.0))
    return max(found)


def _check_logit_transform(model: Any, causal: Any, tree: Tree) -> None:
    """Give the model raw logits of every size, and check that it changes them as `Head.shape` does.

    A fresh model has small logits, on which a softcap does not show; after some training it does.

    Raises:
        UserError: it changes them otherwise.
    """
    head = Head.of(causal)
    planted: list[Tensor] = []

    def plant(module: Any, args: Any, output: Tensor) -> Tensor:
        wave = torch.linspace(-60, 60, output.numel(), device=output.device, dtype=torch.float64).view_as(output)
        planted.append(wave.to(output.dtype))
        return planted[-1]

    ids = torch.from_numpy(tree.prompt.astype(np.int64))[None].to(next(model.parameters()).device)
    handle = head.module.register_forward_hook(plant)
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        handle.remove()
    if not planted or planted[-1].shape != logits.shape:
        raise UserError(f"{type(causal).__name__} does not take its logits from its output embedding as they are: "
                        "this architecture is not supported")  # fmt: skip
    expected = head.shape(planted[-1])
    slack = 8 * torch.finfo(logits.dtype).eps
    if not torch.allclose(logits.to(expected.dtype), expected, rtol=slack, atol=slack):
        raise UserError(f"{type(causal).__name__} transforms its logits in a way that prefopt does not know (they are "
                        f"{(logits - expected).abs().max():.2g} off): this architecture is not supported")  # fmt: skip


def _static_gate(causal: Any) -> str | None:
    """Why a model's own declarations rule trees out, or None."""
    config = causal.config.get_text_config()
    kinds = _layer_types(config, _window(config)) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"layers of type {', '.join(sorted(kinds))} are not supported"
    with attention_of(causal, "tree"):
        return None if attention_name(causal) == NAME else "its attention cannot be replaced"


def _check_causal(model: Any, probes: list[Tree], expected: Logps, images: Images) -> None:
    """Check that no token of a completion sees a later one: some models for images read whole texts at once.

    Raises:
        UserError: one does.
    """
    if probes[0].closing:
        return  # nothing but the last token is scored
    changed = []
    for tree in probes:
        branches = tuple(np.append(b[:-1], _others(b[-1:], images[1])).astype(np.int32) for b in tree.branches)
        changed += _plain_logps(model, Tree(tree.prompt, branches), images[0])
    off = max(float(np.abs(a - b)[:-1].max(initial=0)) for a, b in zip(changed, expected, strict=True))
    if not off <= TOLERANCE.get(next(model.parameters()).dtype, 1.0):
        raise UserError(f"{type(unwrap(model)).__name__} lets tokens see later ones ({off:.2g} nats): it is not a "
                        "causal language model, and is not supported")  # fmt: skip


def _numeric_gates(causal: Any, probes: list[Tree], expected: Logps, tolerance: float, images: Images) -> str | None:
    """Why the leak test or the numeric check rules trees out, or None."""
    try:
        inputs, kept = images
        found, windows = _row_logps(causal, probes, "tree", inputs)
        # A leak may go either way along the row: change the last branches, then the first.
        others = {which: _with_other_tokens(probes, which, kept) for which in (-1, 0)}
        changed = {which: _row_logps(causal, trees, "tree", inputs)[0] for which, trees in others.items()}
    except (Stopped, torch.OutOfMemoryError):
        raise
    except Exception as problem:
        return f"the tree layout does not run ({type(problem).__name__}: {first_line(problem)})"
    branches = [(b, len(tree.branches)) for tree in probes for b in range(len(tree.branches))]
    leak = max(
        float(np.abs(after - before).max())
        for which, logps in changed.items()
        for (b, count), before, after in zip(branches, found, logps, strict=True)
        if b != which % count
    )
    if not leak <= tolerance:
        return f"changing one branch moves another by {leak:.2g} nats (leak test)"
    error = _error(found, expected)
    if error > tolerance:
        return f"log-probs are {error:.2g} nats off a plain forward (numeric check)"
    config = causal.config.get_text_config()
    window = _window(config)
    unprobed = window is not None and window > PROBED_WINDOW and "sliding_attention" in _layer_types(config, window)
    if unprobed and window not in windows:
        return f"its attention does not say that its sliding window is {window}"
    return None


def _with_other_tokens(probes: list[Tree], which: int, kept: frozenset[int]) -> list[Tree]:
    """The same trees with other tokens in the first (0) or last (-1) branch of each."""
    changed = []
    for tree in probes:
        branches = list(tree.branches)
        branches[which] = _others(branches[which], kept)
        changed.append(Tree(tree.prompt, tuple(branches), tree.closing))
    return changed


def _others(ids: Ids, kept: frozenset[int]) -> Ids:
    """Another token in place of each, none of those that stand for images."""
    other = np.where(ids > 0, ids - 1, 1).astype(np.int32)
    for i in np.flatnonzero(np.isin(other, list(kept))):
        other[i] = next(token for token in range(len(kept) + 2) if token not in kept and token != ids[i])
    return other


def _layer_types(config: Any, window: int | None) -> set[str]:
    types = getattr(config, "layer_types", None)
    return set(types) if types else {"full_attention" if window is None else "sliding_attention"}


def _window(config: Any) -> int | None:
    window = getattr(config, "sliding_window", None)
    return window if isinstance(window, int) and window > 0 else None


def _probes(config: Any, *, closing: bool, kept: frozenset[int] = frozenset()) -> list[Tree]:
    """A few trees of random tokens, one longer than a sliding window that is short enough to be probed."""
    rng = np.random.default_rng(0)
    window = _window(config)
    limit = steady_positions(config) or int(getattr(config, "max_position_embeddings", None) or 2**20)
    long = window + 7 if window is not None and window <= PROBED_WINDOW else 11

    def ids(n: int) -> Ids:
        drawn = rng.integers(0, config.vocab_size, n).astype(np.int32)
        special = np.isin(drawn, list(kept))
        drawn[special] = _others(drawn[special], kept)
        if closing and drawn[-1] == config.pad_token_id:  # no text ends with it: a classifier reads one before
            drawn[-1] = (drawn[-1] + 1) % config.vocab_size
        return drawn

    shapes = [(5, (4, 7)), (9, (3, 1, 6)), (min(long, limit - 8), (6, 5))]
    return [Tree(ids(prompt), tuple(ids(n) for n in branches), closing) for prompt, branches in shapes]


def _plain_logps(model: Any, tree: Tree, inputs: ImageInputs | None = None) -> Logps:
    """Log-probs of each branch by the model's own forward, one unpadded sequence at a time; scores of closing ones."""
    device = next(model.parameters()).device
    found = []
    for branch in tree.branches:
        prompt = tree.prompt if inputs is None else inputs.ids(tree.prompt)
        ids = torch.from_numpy(np.concatenate((prompt, branch)).astype(np.int64))[None].to(device)
        given = {} if inputs is None else image_call(inputs, [tree.prompt], ids, model)
        if tree.closing:
            found.append(model(input_ids=ids, use_cache=False, **given).logits[0].double().cpu().numpy())
            continue
        logits = model(input_ids=ids, use_cache=False, **given).logits[0, len(tree.prompt) - 1 : -1].double()
        logp = logits - logits.logsumexp(-1, keepdim=True)
        found.append(logp.gather(1, ids[0, len(tree.prompt) :, None])[:, 0].cpu().numpy())
    return found


def _row_logps(
    causal: Any, trees: list[Tree], layout: Layout, inputs: ImageInputs | None = None
) -> tuple[Logps, set[int | None]]:
    """Log-probs of each branch with all trees in one row, and the windows that layers asked the tree attention for."""
    row = with_images(lay_out(trees, layout), inputs).to(next(causal.parameters()).device)
    with install(causal), attention_of(causal, layout):  # as a policy has them
        stats = score_row(causal, row)
    assert isinstance(stats, TokenStats)
    logp = stats.logp.double().cpu().numpy()
    windows = row.tree.windows if row.tree is not None else set()
    return np.split(logp, np.cumsum(row.scored.cpu().numpy())[:-1]), windows


def _error(found: Logps, expected: Logps) -> float:
    error = float(np.abs(np.concatenate(expected) - np.concatenate(found)).max())
    return error if np.isfinite(error) else float("inf")
