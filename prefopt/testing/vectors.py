"""Builds conformance vectors: inputs, hyper-parameters and expected values that any library can be checked with.

`docs/vectors.md` describes the files. Inputs are multiples of 1/256, so that float32 holds them exactly.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from enum import Enum
from functools import cache
from itertools import pairwise
from typing import Any

import torch

from prefopt.losses.registry import loss_class
from prefopt.plugin import Data, Loss, traits, value_at_reference
from prefopt.testing import samples
from prefopt.testing.kit import example
from prefopt.testing.metadata_checks import other_values, replaced
from prefopt.testing.needs_checks import depends_on_ids
from prefopt.testing.numbers import SIDES, build, call, value_of, whole
from prefopt.testing.value_checks import sensitivity

VERSION = 2  # rises when a number in the vectors changes
EXAMPLES = 4
_FILLERS = {"_token": -1.0, "_log_sum_sq": -0.5, "_ref_entropy": 1.0, "_kl": 0.25, "_log_away": 0.015625,
            "_log_toward": -0.015625}  # fmt: skip


def vectors(name: str) -> dict[str, Any]:
    """Return the vectors of one loss: its first case at the top level, the others under `cases`."""
    loss = example(loss_class(name))
    seed = _varied(loss.needs.data)
    declared, ordinary = traits(loss), numbers(loss, seed=seed)
    first, *others = cases = list(_cases(loss, seed))
    for before, case in reversed(list(pairwise(cases))):
        if case["inputs"] == before["inputs"]:
            del case["inputs"]
    return {
        "loss": name,
        "version": VERSION,
        "paper": loss.paper,
        "source": declared.audit.source if declared.audit is not None else None,
        "needs": {name: value for name, value in declared.needs.flags().items() if value},
        "depends_on_ids": depends_on_ids(loss, ordinary),
        **first,
        "cases": others,
    }


def dumps(vectors: dict[str, Any]) -> str:
    """Format vectors as JSON with one array of numbers a line."""
    text = json.dumps(vectors, indent=1, allow_nan=False)
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda match: f"[{' '.join(match[1].split())}]", text) + "\n"


def numbers(loss: Loss, *, seed: int, scale: float = 1.0, equal_lengths: bool = False) -> samples.Named:
    """Draw what a loss reads; `scale` multiplies log-probs, `equal_lengths` gives every completion 6 tokens."""
    return samples.declared(loss.needs, _drawn(loss.needs.data, seed=seed, scale=scale, equal_lengths=equal_lengths))


def _drawn(data: Data, *, seed: int, scale: float = 1.0, equal_lengths: bool = False) -> samples.Named:
    """Every number of this shape of data, in multiples of 1/256."""
    drawn = samples.random_numbers(data, seed=seed, examples=EXAMPLES)
    for name, value in drawn.items():
        if equal_lengths:
            filler = next((number for end, number in _FILLERS.items() if name.endswith(end)), None)
            if name.endswith("num_tokens"):
                drawn[name] = torch.where(value > 0, 6, value)
            elif filler is not None:
                drawn[name] = torch.where(value == 0, 1.25 * filler if name.startswith("ref_") else filler, value)
        if name.endswith("_token"):
            drawn[name] = drawn[name] * scale
        if drawn[name].is_floating_point():
            drawn[name] = (drawn[name] * 256).round() / 256
    for side, lengths in SIDES[data]:
        for prefix in ("", "ref_", *(["old_"] if f"old_{side}" in drawn else [])):
            inside = drawn[lengths].unsqueeze(-1) > torch.arange(6)
            drawn[f"{prefix}{side}_token"] = drawn[f"{prefix}{side}_token"] * inside
            drawn[f"{prefix}{side}"] = drawn[f"{prefix}{side}_token"].sum(-1)
    return drawn


@cache
def _varied(data: Data) -> int:
    """The first seed of which every side's log-ratios take both signs, so that each branch of a loss is seen."""
    sides = [side for side, _ in SIDES[data] if side != "mismatched"]
    for seed in range(1, 1000):
        batches = [_drawn(data, seed=seed, equal_lengths=equal) for equal in (False, True)]
        ratios = [batch[side] - batch[f"ref_{side}"] for batch in batches for side in sides]
        if all(bool((ratio > 0.25).any() and (ratio < -0.25).any()) for ratio in ratios):
            return seed
    raise AssertionError("no such batch")


def _cases(loss: Any, seed: int) -> Iterator[dict[str, Any]]:
    ordinary, equal = numbers(loss, seed=seed), numbers(loss, seed=seed, equal_lengths=True)
    extreme = numbers(loss, seed=seed + 1, scale=1000.0)
    changed = {field.name: _changed(loss, field.name) for field in dataclasses.fields(loss)}
    # A hyper-parameter that acts through lengths shows nothing where they are equal.
    shows = {n for n, other in changed.items() if not torch.equal(value_of(other, equal), value_of(loss, equal))}
    yield _case("ordinary", loss, ordinary)
    yield _case("ordinary, float32", loss, ordinary, torch.float32)
    for name in changed:
        if name not in shows and changed[name] is not loss:
            yield _case(f"ordinary, {name} changed", changed[name], ordinary)
    yield _case("equal lengths", loss, equal)
    for name in sorted(shows):
        yield _case(f"equal lengths, {name} changed", changed[name], equal)
    if loss.needs.data is Data.UNPAIRED:
        yield _case("uneven labels", loss, ordinary | {"desirable": torch.arange(EXAMPLES) > 0})
    yield _case("extremes", loss, extreme)
    yield _case("extremes, float32", loss, extreme, torch.float32)


def _changed(loss: Any, name: str) -> Any:
    """The loss with another value of a hyper-parameter, or itself where there is none to try."""
    others = (replaced(loss, name, value) for value in other_values(getattr(loss, name)))
    return next((other for other in others if other is not None), loss)


def _case(name: str, loss: Any, inputs: samples.Named, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """One case; its expected values are exact ones, computed in float64 whatever precision it is meant for."""
    leaves = {leaf: inputs[leaf].clone().requires_grad_() for leaf in samples.leaves(loss.needs, inputs)}
    batch = whole(loss, build(loss.needs, inputs | leaves))
    value = call(loss, batch).loss
    gradients = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True)
    exact, moves = sensitivity(loss, inputs)
    return {
        "name": name,
        "dtype": str(dtype).removeprefix("torch."),
        "hyperparameters": {f.name: _plain(getattr(loss, f.name)) for f in dataclasses.fields(loss)},
        "inputs": {name: value.tolist() for name, value in inputs.items()},
        "expected": {
            "loss": value.tolist(),
            "gradients": {
                leaf: (torch.zeros_like(inputs[leaf]) if gradient is None else gradient).tolist()
                for leaf, gradient in zip(leaves, gradients, strict=True)
            },
            "at_reference": _at_reference(loss, inputs),
            **_targets(batch),
        },
        # What rounding of the inputs alone can change, and some.
        "tolerance": 64 * torch.finfo(dtype).eps * float((exact.abs() + moves).max() + 1),
    }


def _targets(batch: Any) -> dict[str, Any]:
    """What an on-policy loss makes of the whole rollout before its first step, such as advantages."""
    targets = getattr(batch, "targets", {})
    return {"targets": {name: value.tolist() for name, value in targets.items()}} if targets else {}


def _at_reference(loss: Any, inputs: samples.Named) -> list[float] | None:
    same = samples.declared(loss.needs, samples.at_reference(inputs))
    stated = value_at_reference(loss, whole(loss, build(loss.needs, same)))
    if stated is None:
        return None
    return torch.as_tensor(stated, dtype=torch.float64).expand(EXAMPLES).tolist()


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
