"""A batch that broke a run, kept so that it can be looked at again: token ids and facts, in safetensors and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from prefopt.data.tokens import num_trained, token_ids
from prefopt.engine.forward import Options, unwrap
from prefopt.engine.gates import LayoutVerdict
from prefopt.engine.layout import Layout
from prefopt.engine.policy import Policy
from prefopt.engine.scoring import Branch, MicroBatch
from prefopt.errors import UserError
from prefopt.plugin import Data, Logps, Loss, Needs, State, Vocab
from prefopt.train.batches import Work, per_token
from prefopt.train.examples import Facts, examples_of, join
from prefopt.train.sources.feed import ALSO_TAKES

FACTS, TENSORS, MODEL = "batch.json", "batch.safetensors", "model"
STATE = "state."  # before the names of a loss's state
OWN = {Data.PAIRS: 2, Data.UNPAIRED: 1, Data.LISTS: 2, Data.DEMONSTRATIONS: 1}  # completions that a loss reads at least

ADAPTED = ("lora_", "modules_to_save")  # in the names of what is trained of an adapted model


@dataclass(frozen=True, eq=False)
class Kept:
    """A kept batch.

    Attributes:
        step: in which it broke the run.
        why: what was wrong.
        works: its micro-batches.
        state: of the loss, for one that has a state.
        layout: of their rows.
        model: the folder of the weights of that step, where they were kept.
        identity: of the run, with the digest of these weights.
    """

    step: int
    why: str
    works: tuple[Work, ...]
    state: State | None
    layout: Layout
    model: Path | None
    identity: Mapping[str, Any] = field(default_factory=dict)

    def policy(self, model: Any) -> Policy:
        """A policy for its rows; the gates, which refuse weights that are not finite, are not asked.

        Raises:
            UserError: the model has fewer tokens than the batch names.
        """
        highest = max(int(b.prompt.max(initial=0)) for w in self.works for b in w.branches)
        highest = max(highest, *(int(token_ids(b.completion).max(initial=0)) for w in self.works for b in w.branches))
        if highest >= (known := unwrap(model).get_input_embeddings().num_embeddings):
            raise UserError(f"the batch has the token {highest}, and the model has {known} tokens: give the model of "
                            "the run, or one with its vocabulary")  # fmt: skip
        return Policy(model, LayoutVerdict(self.layout, "that of the batch"))


def save(folder: Path, batch: Kept) -> None:
    """Fill an empty folder with a batch; its model is not copied."""
    tensors: dict[str, Tensor] = {}
    facts = []
    for n, work in enumerate(batch.works):
        texts = []
        at = 0
        for f in work.facts:  # of each record its prompt, then its completions
            mine = work.branches[at : at + f.completions]
            texts += [mine[0].prompt, *(branch.completion for branch in mine)]
            at += f.completions
        tensors[f"{n}.tokens"] = torch.from_numpy(np.concatenate(texts).astype(np.int32))
        tensors[f"{n}.lengths"] = torch.tensor([len(ids) for ids in texts], dtype=torch.int32)
        for name in ("ref_sum", "ref_token", "ref_entropy"):
            if (value := getattr(work, name)) is not None:
                tensors[f"{n}.{name}"] = value.contiguous()
        facts.append([
            {"id": f.id, "key": f.key, "kind": f.kind.value, "own": f.own, "mismatched": f.mismatched,
             "desirable": f.desirable, "scores": f.scores, "weight": f.weight, "margin": f.margin,
             "probability": f.probability}
            for f in work.facts
        ])  # fmt: skip
    tensors |= {STATE + name: value.contiguous() for name, value in (batch.state or {}).items()}
    save_file(tensors, folder / TENSORS)
    content = {"step": batch.step, "why": batch.why, "layout": batch.layout, "works": facts,
               "identity": dict(batch.identity)}  # fmt: skip
    (folder / FACTS).write_text(json.dumps(content, indent=1), encoding="utf-8")


def load(path: Path) -> Kept:
    """What `save` wrote.

    Args:
        path: the folder, or its `batch.json`.

    Raises:
        UserError: it is not such a folder, or its files do not fit together.
    """
    folder = path if path.is_dir() else path.parent
    try:
        content = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS)
        works = tuple(
            _work([_facts(f) for f in facts], n, tensors, content["layout"]) for n, facts in enumerate(content["works"])
        )
        if not works:
            raise ValueError("it has no records")
        state = {name.removeprefix(STATE): t for name, t in tensors.items() if name.startswith(STATE)} or None
        model = folder / MODEL
        return Kept(int(content["step"]), str(content["why"]), works, state, content["layout"],
                    model if model.is_dir() else None, dict(content.get("identity", {})))  # fmt: skip
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError, OverflowError,
            RecursionError, AssertionError, SafetensorError) as error:  # fmt: skip
        raise UserError(
            f"{path} is not a batch that a run kept ({type(error).__name__}: {str(error)[:200]}): give the folder "
            f"`not-finite-STEP` of a run, or its {FACTS}"
        ) from error


def _facts(kept: dict[str, Any]) -> Facts:
    scores = kept["scores"]
    return Facts(
        id=str(kept["id"]),
        key=int(kept["key"]),
        kind=Data(kept["kind"]),
        own=int(kept["own"]),
        mismatched=int(kept["mismatched"]),
        desirable=kept["desirable"],
        scores=None if scores is None else tuple(map(float, scores)),
        weight=float(kept["weight"]),
        margin=kept.get("margin"),
        probability=kept.get("probability"),
    )


def _work(facts: Sequence[Facts], n: int, tensors: dict[str, Tensor], layout: Layout) -> Work:
    lengths = tensors[f"{n}.lengths"].tolist()
    tokens = tensors[f"{n}.tokens"]
    if layout not in ("tree", "padded"):
        raise ValueError(f"an unknown layout {layout!r}")
    if any(length < 1 for length in lengths) or sum(lengths) != len(tokens):
        raise ValueError("its tokens and lengths do not fit together")
    if len(lengths) != sum(1 + f.completions for f in facts) or any(f.completions < 1 or f.own < 1 for f in facts):
        raise ValueError("its records and tokens do not fit together")
    texts = iter(torch.split(tokens, lengths))
    branches = []
    for f in facts:
        prompt = next(texts).numpy()
        branches += [Branch(prompt, next(texts).numpy()) for _ in range(f.completions)]
        if prompt.min() < 0:
            raise ValueError("its prompts have images, which are not kept with a batch")
        if any(branch.completion[-1] < 0 for branch in branches[-f.completions :]):
            raise ValueError("its prompts and completions do not end in what was trained")
    refs = {name: tensors.get(f"{n}.{name}") for name in ("ref_sum", "ref_token", "ref_entropy")}
    sizes = {"ref_sum": len(branches), "ref_token": sum(num_trained(b.completion) for b in branches)}
    sizes["ref_entropy"] = sizes["ref_token"]
    if any(value is not None and value.shape != (sizes[name],) for name, value in refs.items()):
        raise ValueError("its reference log-probs do not fit its records")
    return Work(
        batch=MicroBatch.of(branches, layout),
        branches=tuple(branches),
        facts=tuple(facts),
        index=tuple(range(len(facts))),
        ref_sum=refs["ref_sum"],
        ref_token=refs["ref_token"],
        ref_entropy=refs["ref_entropy"],
        real=True,
    )


def refuse_other_needs(loss: Loss, kept: Kept) -> None:
    """Raise UserError where a batch has not what a loss needs, such as a batch of pairs for a loss on lists."""
    needs = loss.needs
    facts = [f for work in kept.works for f in work.facts]
    other = next((f for f in facts if f.kind is not needs.data and f.kind not in ALSO_TAKES[needs.data]), None)
    lacks = []
    if other is not None:
        lacks.append(f"{needs.data.value} (its records are {other.kind.value})")
    elif any(f.own < OWN[needs.data] for f in facts):
        lacks.append("every completion of a record (the run's loss read fewer)")
    elif needs.data is Data.UNPAIRED and any(f.kind is Data.UNPAIRED and f.desirable is None for f in facts):
        lacks.append("whether a completion is desirable")
    elif any(_lacks_scores(f, needs) for f in facts):
        lacks.append("a score of every completion")
    elif unknown := [name for f in facts for name in f.unknown(needs)]:
        lacks.append(f"a {unknown[0]} of every pair")
    if needs.only_own_samples:
        lacks.append("the log-probs that the policy's own samples were drawn with")
    if needs.control_text and any(f.kind is Data.PAIRS for f in facts):
        lacks.append("a control text in each completion")
    if needs.mismatched and any(f.mismatched < f.own for f in facts):
        lacks.append("completions of another prompt")
    if needs.state and (kept.state is None or kept.state.keys() != loss.initial_state().keys()):  # type: ignore[attr-defined]
        lacks.append("the loss's running state")
    for name in _of_the_reference(needs):
        if any(getattr(work, name) is None for work in kept.works):
            lacks.append({"ref_sum": "log-probs of the reference", "ref_token": "the reference's log-probs of tokens",
                          "ref_entropy": "the reference's entropy"}[name])  # fmt: skip
    if lacks:
        raise UserError(f"{type(loss).__name__} needs what the batch does not have: {', '.join(lacks)}; give another "
                        "--loss, or none for the run's own")  # fmt: skip


def _lacks_scores(facts: Facts, needs: Needs) -> bool:
    if facts.scores is None:
        return needs.scores or facts.kind is Data.LISTS
    return needs.data in (Data.PAIRS, Data.LISTS) and len(facts.scores) != facts.own


def _of_the_reference(needs: Needs) -> list[str]:
    """What of a `Work` a loss reads; nothing where the reference's own weights are needed, which are not kept."""
    if not needs.reference or needs.live_reference:
        return []
    entropy = ["ref_entropy"] if Vocab.REF_ENTROPY in needs.vocab else []
    return ["ref_sum", *(["ref_token"] if per_token(needs) else []), *entropy]


def rows(policy: Policy, loss: Loss, kept: Kept, precision: torch.dtype | None = None) -> Iterator[dict[str, Any]]:
    """The batch again, without gradient: for each completion its record, side, log-probs under policy and reference,
    and the loss of its example (None for a loss that needs a live reference, whose weights are not kept).

    Args:
        policy: in the layout of the rows.
        loss: any that the batch has enough for.
        kept: the batch.
        precision: of autocast, None without.

    Raises:
        UserError: the batch has not what the loss needs.
    """
    refuse_other_needs(loss, kept)
    policy.eval()
    for works in _parts(loss, kept):
        with torch.no_grad():
            logps, record, values = _scored(policy, loss, works, kept.state, precision)
        own: dict[int, list[float]] = {}
        for place, value in zip(record.tolist(), values.tolist(), strict=True):
            own.setdefault(place, []).append(value)
        at = 0
        for place, f in enumerate(f for work in works for f in work.facts):
            losses = own.get(place, [])  # one of the record, or one of each of its own completions
            for k in range(f.completions):
                yield {
                    "record": f.id,
                    "completion": side(f, k),
                    "tokens": int(logps.num_tokens[at]),
                    "policy": float(logps.sum[at]),
                    "reference": float(logps.ref_sum[at]) if logps.ref_sum is not None else None,
                    "loss": losses[0] if len(losses) == 1 else losses[k] if k < len(losses) else None,
                }
                at += 1


def _parts(loss: Loss, kept: Kept) -> list[list[Work]]:
    """The micro-batches, all of them together for a loss that couples its examples."""
    return [list(kept.works)] if loss.needs.coupled else [[work] for work in kept.works]


def _scored(
    policy: Policy, loss: Loss, works: Sequence[Work], state: State | None, precision: torch.dtype | None
) -> tuple[Logps, Tensor, Tensor]:
    """Log-probs, and of each example the place of its record and its loss: none for a loss with a live reference."""
    needs = loss.needs
    device = next(policy.parameters()).device
    with _autocast(device, precision):
        options = Options(vocab=needs.vocab & {Vocab.LOG_SUM_SQ})
        logps = join([work.logps(work.batch.forward(policy, options), needs) for work in works])
    if needs.live_reference:
        return logps, torch.zeros(0, dtype=torch.long), torch.zeros(0)
    examples = examples_of([f for work in works for f in work.facts], logps, needs)
    given = [{name: value.to(device) for name, value in (state or {}).items()}] if needs.state else []
    try:
        output = loss(examples.logps, *given)
    except Exception as error:  # a plugin may be anybody's
        raise UserError(f"{type(loss).__name__} failed on the batch: {type(error).__name__}: {error}") from error
    return logps, examples.record, output.loss


def _autocast(device: torch.device, precision: torch.dtype | None) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, precision) if precision is not None else nullcontext()


def gradient_not_finite(policy: Policy, loss: Loss, kept: Kept, precision: torch.dtype | None = None) -> str | None:
    """The first weights whose gradient of the loss on the batch is not finite, as a phrase for people.

    Of an adapted model these are the adapter's. A loss with a live reference, whose weights are not kept, has none.
    """
    refuse_other_needs(loss, kept)
    if loss.needs.live_reference:
        return None
    policy.eval()
    model = policy.model
    named = dict(model.named_parameters())
    trained = {n: p for n, p in named.items() if any(part in n for part in ADAPTED)} or named
    for parameter in trained.values():
        parameter.requires_grad_(parameter.is_floating_point())
    model.zero_grad()
    for works in _parts(loss, kept):
        _, record, values = _scored(policy, loss, works, kept.state, precision)
        weights = torch.tensor([f.weight for work in works for f in work.facts], dtype=values.dtype)
        (values * weights[record.cpu()].to(values.device)).sum().backward()  # type: ignore[no-untyped-call]
    bad = [n for n, p in trained.items() if p.grad is not None and not torch.isfinite(p.grad).all()]
    model.zero_grad()
    return f"the gradient of {bad[0]} is not finite, as that of {len(bad)} tensors in all" if bad else None


def side(facts: Facts, k: int) -> str:
    """What completion k of a record is."""
    if k >= facts.own:
        return f"another prompt's {k - facts.own + 1}"
    if facts.kind is Data.PAIRS:
        return ("chosen", "rejected")[k]
    if facts.kind is Data.LISTS:
        return f"completion {k + 1}"
    return "demonstration" if facts.desirable is None else "desirable" if facts.desirable else "undesirable"


def first_not_finite(policy: Policy, works: Sequence[Work], precision: torch.dtype | None = None) -> str | None:
    """The first module of a forward whose output is not finite, or weights that are not, as a phrase for people.

    Args:
        policy: in the layout of the rows.
        works: what it is given.
        precision: of autocast, None without.
    """
    model = unwrap(policy)
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            return f"the weights {name} are not finite"
    found: list[str] = []
    device = next(model.parameters()).device
    with _hooked(model, found), torch.no_grad(), _autocast(device, precision):
        for work in works:
            work.batch.forward(policy)
            if found:
                return f"{found[0]} is the first layer whose output is not finite"
    return None


@contextmanager
def _hooked(model: Any, found: list[str]) -> Iterator[None]:
    def look(name: str) -> Any:
        def hook(module: Any, given: Any, out: Any) -> None:
            values = out if isinstance(out, tuple | list) else [out]
            tensors = [v for v in values if isinstance(v, Tensor) and v.is_floating_point()]
            if any(not torch.isfinite(v).all() for v in tensors):
                found.append(name)

        return hook

    leaves = [(name, m) for name, m in model.named_modules() if not any(True for _ in m.children())]
    handles = [module.register_forward_hook(look(name)) for name, module in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
