"""A batch that broke a run, kept so that it can be looked at again: token ids and facts, in safetensors and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from prefopt.data.tokens import TokenRecord
from prefopt.engine.forward import Ask, install
from prefopt.engine.layout import Layout
from prefopt.engine.scoring import Branch, MicroBatch
from prefopt.errors import UserError
from prefopt.plugin import Data, Loss, State, Vocab
from prefopt.trainer.batches import Work
from prefopt.trainer.examples import Facts, examples_of

FACTS, TENSORS, MODEL = "batch.json", "batch.safetensors", "model"
STATE = "state."  # before the names of a loss's state


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
    """

    step: int
    why: str
    works: tuple[Work, ...]
    state: State | None
    layout: Layout
    model: Path | None


def save(
    folder: Path, works: Sequence[Work], records: Sequence[Sequence[TokenRecord]], *,
    step: int, why: str, layout: Layout, state: State | None,
) -> None:  # fmt: skip
    """Fill a folder.

    Args:
        folder: an empty one.
        works: the micro-batches of a step.
        records: of each of them, as they were fed.
        step, why: kept for people.
        layout: of the rows.
        state: of the loss.
    """
    tensors: dict[str, Tensor] = {}
    facts = []
    for n, (work, group) in enumerate(zip(works, records, strict=True)):
        texts = [ids for record in group for ids in (record.prompt, *record.completions)]
        tensors[f"{n}.tokens"] = torch.from_numpy(np.concatenate(texts).astype(np.int32))
        tensors[f"{n}.lengths"] = torch.tensor([len(ids) for ids in texts], dtype=torch.int32)
        for name in ("ref_sum", "ref_token", "ref_entropy"):
            if (value := getattr(work, name)) is not None:
                tensors[f"{n}.{name}"] = value.contiguous()
        facts.append([
            {"id": f.id, "key": f.key, "kind": f.kind.value, "own": f.own, "mismatched": f.mismatched,
             "desirable": f.desirable, "scores": f.scores, "weight": f.weight}
            for f in work.facts
        ])  # fmt: skip
    tensors |= {STATE + name: value.contiguous() for name, value in (state or {}).items()}
    save_file(tensors, folder / TENSORS)
    content = {"step": step, "why": why, "layout": layout, "works": facts}
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
                    model if model.is_dir() else None)  # fmt: skip
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
    )


def _work(facts: Sequence[Facts], n: int, tensors: dict[str, Tensor], layout: Layout) -> Work:
    lengths = tensors[f"{n}.lengths"].tolist()
    tokens = tensors[f"{n}.tokens"]
    if layout not in ("tree", "padded"):
        raise ValueError(f"an unknown layout {layout!r}")
    if any(length < 1 for length in lengths) or sum(lengths) != len(tokens) or int(tokens.min()) < 0:
        raise ValueError("its tokens and lengths do not fit together")
    if len(lengths) != sum(1 + f.completions for f in facts) or any(f.completions < 1 or f.own < 1 for f in facts):
        raise ValueError("its records and tokens do not fit together")
    texts = iter(torch.split(tokens, lengths))
    branches = []
    for f in facts:
        prompt = next(texts).numpy()
        branches += [Branch(prompt, next(texts).numpy()) for _ in range(f.completions)]
    refs = {name: tensors.get(f"{n}.{name}") for name in ("ref_sum", "ref_token", "ref_entropy")}
    sizes = {"ref_sum": len(branches), "ref_token": sum(len(b.completion) for b in branches)}
    sizes["ref_entropy"] = sizes["ref_token"]
    if any(value is not None and value.shape != (sizes[name],) for name, value in refs.items()):
        raise ValueError("its reference log-probs do not fit its records")
    return Work(
        batch=MicroBatch.of(branches, layout),
        facts=tuple(facts),
        index=tuple(range(len(facts))),
        real=True,
        **refs,
    )


def rows(model: Any, loss: Loss, kept: Kept) -> Iterator[dict[str, Any]]:
    """The batch again, without gradient: for each completion its record, side, log-probs under policy and reference,
    and the loss of its example (None for a loss that needs a live reference, whose weights are not kept)."""
    needs = loss.needs
    install(model, kept.layout).eval()
    live = needs.moving_reference or Vocab.KL in needs.vocab
    for work in kept.works:
        with torch.no_grad():
            flat = work.flat(work.batch.forward(model, Ask(vocab=needs.vocab & {Vocab.LOG_SUM_SQ})), needs)
            losses: dict[int, float] = {}
            if not live:
                examples = examples_of(work.facts, flat, needs)
                values = loss(examples.logps, *((kept.state,) if needs.state else ())).loss
                losses = dict(zip(examples.record.tolist(), values.tolist(), strict=False))
        at = 0
        for place, f in enumerate(work.facts):
            for k in range(f.completions):
                yield {
                    "record": f.id,
                    "completion": side(f, k),
                    "tokens": int(flat.num_tokens[at]),
                    "policy": float(flat.sum[at]),
                    "reference": float(flat.ref_sum[at]) if flat.ref_sum is not None else None,
                    "loss": losses.get(place),
                }
                at += 1


def side(facts: Facts, k: int) -> str:
    """What completion k of a record is."""
    if k >= facts.own:
        return f"another prompt's {k - facts.own + 1}"
    if facts.kind is Data.PAIRS:
        return ("chosen", "rejected")[k]
    if facts.kind is Data.LISTS:
        return f"completion {k + 1}"
    return "demonstration" if facts.desirable is None else "desirable" if facts.desirable else "undesirable"


def first_not_finite(model: Any, works: Sequence[Work]) -> str | None:
    """The first module of a forward whose output is not finite, or weights that are not, as a phrase for people."""
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            return f"the weights {name} are not finite"
    found: list[str] = []
    with _hooked(model, found), torch.no_grad():
        for work in works:
            work.batch.forward(model, Ask())
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
