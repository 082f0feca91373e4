"""Judges another library's losses by the conformance vectors: pass, differs by a known convention, fails or absent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prefopt.losses import MENU
from prefopt.testing.numbers import to_tensor

HALVED, DOUBLED = "halved", "doubled"
FLOAT32 = "to float32's precision"
TOKEN_MEAN = "token mean"  # likelihoods are averaged over all tokens of a batch, not over each example's
EXTREMES = "not exact at extremes"
_FACTORS = {HALVED: 0.5, DOUBLED: 2.0}


class UnsupportedError(Exception):
    """Raised by a peer for a case that it cannot express, such as a hyper-parameter that it does not have."""


@dataclass(frozen=True)
class Case:
    """One case of the vectors; `inputs` are leaves, and those in `gradients` carry gradient."""

    name: str
    inputs: dict[str, Tensor]
    hyperparameters: dict[str, Any]
    loss: Tensor
    gradients: dict[str, Tensor]
    tolerance: float
    targets: dict[str, Tensor] = field(default_factory=dict)  # what an on-policy loss made of the whole rollout


@dataclass(frozen=True)
class Way:
    """One way to call a peer's loss. It returns one value per example, or their mean.

    `convention` names in what the peer differs from the vectors where this way passes; None where in nothing.
    `expected` gives the (B,) values of that convention, where they are not those of the vectors. A `mistake` is no
    convention but another objective than the method's: the verdict is then `fails`, and the formula explains it.
    """

    call: Callable[[Case], Tensor]
    convention: str | None = None
    expected: Callable[[Case], Tensor] | None = None
    mistake: bool = False

    def verdict(self, convention: str | None) -> str:
        """The verdict where this way passes but for a convention."""
        return "fails" if self.mistake else "pass" if convention in (None, FLOAT32) else "differs"


Errors = Mapping[str, tuple[float, float]]  # case -> (error, allowed)
Tried = tuple[Way, Errors, str | None]  # a way, its errors, and a word on the first that is wrong
Peer = Mapping[str, Sequence[Way]]  # our name of a loss -> the ways to call the peer's, the literal one first


@dataclass(frozen=True)
class Ruling:
    """What the vectors say about one loss of a peer; `max_error` is relative where the expected number exceeds 1."""

    verdict: str  # pass, differs, fails or absent
    convention: str | None = None
    max_error: float | None = None
    detail: str | None = None


def cases_of(vectors: Mapping[str, Any]) -> list[Case]:
    """The cases of one file of vectors, the first included; one without `inputs` has those of the case before."""
    merged = [dict(vectors)]
    for case in vectors["cases"]:
        merged.append({"inputs": merged[-1]["inputs"], **case})
    return [_case(case, case["name"]) for case in merged]


def _case(case: Mapping[str, Any], name: str) -> Case:
    dtype = getattr(torch, case["dtype"])

    def tensor(name: str, value: Any) -> Tensor:
        plain = to_tensor(name, value)
        return plain.to(dtype) if plain.is_floating_point() else plain

    gradients = {key: to_tensor(key, value) for key, value in case["expected"]["gradients"].items()}
    inputs = {key: tensor(key, value).requires_grad_(key in gradients) for key, value in case["inputs"].items()}
    loss = to_tensor("loss", case["expected"]["loss"])
    targets = {key: tensor(key, value) for key, value in case["expected"].get("targets", {}).items()}
    return Case(name, inputs, case["hyperparameters"], loss, gradients, case["tolerance"], targets)


def judge(peer: Peer, vectors: Mapping[str, Any]) -> Ruling:
    """Rule on one loss of a peer."""
    ways = peer.get(vectors["loss"], ())
    if not ways:
        return Ruling("absent")
    if vectors["depends_on_ids"]:
        return Ruling("absent", detail="it draws at random, and each library draws otherwise")
    cases = cases_of(vectors)
    tried = [(way, *_errors(way, cases)) for way in ways]
    if not any(errors for _, errors, _ in tried):
        return Ruling("absent", detail="no case of the vectors can be asked of it")
    _, literal, wrong = tried[0]
    found = next(_exact(tried, cases), None) or next(_by_pattern(tried), None)
    if found is None or found.verdict == "fails":  # say how far from the method it is, not from its own formula
        return Ruling("fails", None if found is None else found.convention, _largest(literal), wrong)
    return found


def _exact(tried: Sequence[Tried], cases: Sequence[Case]) -> Iterator[Ruling]:
    """The rulings by ways that are right in every case, maybe but for a factor."""
    for way, errors, _ in tried:
        if errors and not _wrong(errors):
            yield Ruling(way.verdict(way.convention), way.convention, _largest(errors))
        for convention, factor in _FACTORS.items():
            scaled, _ = _errors(way, cases, factor)
            if scaled and not _wrong(scaled):
                named = _joined(way.convention, convention)
                yield Ruling(way.verdict(named), named, _largest(scaled))


def _by_pattern(tried: Sequence[Tried]) -> Iterator[Ruling]:
    """The rulings by ways that are wrong in the cases that a known convention shows in, the most nearly right first."""
    patterns = [(_by_cases(errors), way, errors, why) for way, errors, why in tried]
    for pattern, way, errors, why in sorted(patterns, key=lambda found: found[0] != FLOAT32):
        if pattern is not None:
            named = _joined(way.convention, pattern)
            verdict = way.verdict(named)
            yield Ruling(verdict, named, _largest(errors), None if verdict == "pass" else why)


def _joined(*conventions: str | None) -> str:
    return "; ".join(convention for convention in conventions if convention)


def judge_all(peer: Peer, vectors_of: Callable[[str], Mapping[str, Any]]) -> dict[str, Ruling]:
    """Rule on every loss of the menu."""
    return {name: judge(peer, vectors_of(name)) if name in peer else Ruling("absent") for name in sorted(MENU)}


def _errors(way: Way, cases: Sequence[Case], factor: float = 1.0) -> tuple[dict[str, tuple[float, float]], str | None]:
    """(error, allowed) of each case that the peer can express, and a word on the first that is wrong."""
    errors: dict[str, tuple[float, float]] = {}
    why = None
    for case in cases:
        try:
            error = _error(way, case, factor)
        except UnsupportedError:
            continue
        except Exception as raised:  # anything may come out of another library
            error, why = math.inf, why or f"{case.name}: raised {type(raised).__name__}: {raised}"
        errors[case.name] = error, case.tolerance
        if error > case.tolerance:
            why = why or f"{case.name}: off by {error:.3g}, allowed {case.tolerance:.3g}"
    return errors, why


def _error(way: Way, case: Case, factor: float) -> float:
    """The largest deviation of values and gradients, relative to expected numbers above 1."""
    value = way.call(case)
    loss, gradients = case.loss, case.gradients
    if way.expected is not None:
        loss = way.expected(case)
        gradients = _gradients(case, loss)
    size = 1 if value.ndim else len(loss)
    pairs = [(value.detach(), (loss if value.ndim else loss.mean()).detach())]
    for name, gradient in _gradients(case, value).items():
        inside = case.inputs[name] != 0 if gradient.ndim > 1 else torch.ones_like(gradient)  # 0 is past the end
        pairs.append((gradient * size * inside, gradients[name]))
    worst = [((theirs.double() - ours * factor).abs() / ours.abs().clamp(min=1)).max() for theirs, ours in pairs]
    error = float(torch.stack(worst).max())
    return error if math.isfinite(error) else math.inf


def _gradients(case: Case, value: Tensor) -> dict[str, Tensor]:
    names = list(case.gradients)
    found = torch.autograd.grad(value.sum(), [case.inputs[n] for n in names], allow_unused=True, retain_graph=True)
    return {n: torch.zeros_like(case.inputs[n]) if g is None else g for n, g in zip(names, found, strict=True)}


def _wrong(errors: Errors) -> set[str]:
    return {name for name, (error, allowed) in errors.items() if error > allowed}


def _largest(errors: Errors) -> float | None:
    return max((error for error, _ in errors.values()), default=None)


def _by_cases(errors: Errors) -> str | None:
    """The convention that shows in which cases are wrong, and by how much."""
    coarser = torch.finfo(torch.float32).eps / torch.finfo(torch.float64).eps
    in_float32 = {n: (error, allowed * (1 if "float32" in n else coarser)) for n, (error, allowed) in errors.items()}
    for precision, tried in ((None, errors), (FLOAT32, in_float32)):
        wrong, other = _wrong(tried), None
        if errors and all(name.startswith("extremes") for name in wrong):
            other = EXTREMES if wrong else None
        elif "ordinary" in wrong and "equal lengths" in errors and not any(n.startswith("equal") for n in wrong):
            other = _joined(TOKEN_MEAN, None if all(math.isfinite(e) for e, _ in tried.values()) else EXTREMES)
        elif wrong or not errors:
            continue
        return _joined(other, precision)
    return None
