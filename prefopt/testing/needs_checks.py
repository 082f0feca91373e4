"""Checks of whether declared needs are true: each is used, no other is, and batches and states obey their laws."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from prefopt.plugin import Data, Loss, Needs, State
from prefopt.testing import samples
from prefopt.testing.numbers import SIDES, Numbers, build, call, value_of

Failures = list[str]
SEEDS = range(5)


def _perturbations(data: Data) -> dict[str, Callable[[Numbers, int], Numbers]]:
    """For each need: the same batch with only what that need covers changed."""
    length_names = [lengths for side, lengths in SIDES[data] if side != "mismatched"]

    def reference(name: str) -> bool:
        return name.startswith("ref_")

    def lengths(numbers: Numbers, seed: int) -> Numbers:
        generator = torch.Generator().manual_seed(seed)
        longer = samples.padded(data, numbers) if data is not Data.LISTS else dict(numbers)
        for name in length_names:
            more = torch.randint(1, 4, numbers[name].shape, generator=generator)
            longer[name] = torch.where(numbers[name] > 0, numbers[name] + more, 0)
        return longer

    def tokens(numbers: Numbers, seed: int) -> Numbers:
        """Moves log-prob between the tokens of a completion, its sum unchanged."""
        generator = torch.Generator().manual_seed(seed)
        moved = dict(numbers)
        for name in numbers:
            if name.endswith("_token") and not name.startswith("ref_"):
                inside = (numbers[name] != 0).double()
                noise = torch.rand(inside.shape, generator=generator, dtype=torch.float64) * inside
                mean = noise.sum(-1, keepdim=True) / inside.sum(-1, keepdim=True).clamp(min=1)
                moved[name] = numbers[name] + (noise - mean) * inside
        return moved

    def scores(numbers: Numbers, seed: int) -> Numbers:
        other = samples.random_numbers(data, seed=seed + 1000, examples=len(numbers["ids"]))
        return dict(numbers) | {n: other[n] for n in numbers if n.endswith("score") or n == "scores"}

    def noise(which: Callable[[str], bool]) -> Callable[[Numbers, int], Numbers]:
        return lambda numbers, seed: samples.perturbed(numbers, which, seed)

    found = {
        "reference": noise(reference),
        "lengths": lengths,
        "tokens": tokens,
        "scores": scores,
        "mismatched": noise(lambda name: name == "mismatched"),
        **{s: noise(functools.partial(_ends_with, s)) for s in ("log_sum_sq", "ref_entropy", "kl")},
    }
    if data is Data.UNPAIRED:
        found["desirable"] = lambda numbers, seed: dict(numbers) | {"desirable": ~numbers["desirable"]}
    return found


def _ends_with(suffix: str, name: str) -> bool:
    return name.endswith(suffix)


def _declared_flags(needs: Needs) -> dict[str, bool]:
    flags = {name: bool(getattr(needs, name)) for name in ("reference", "lengths", "tokens", "scores", "mismatched")}
    flags |= {name: any(v.value == name for v in needs.vocab) for name in ("log_sum_sq", "ref_entropy", "kl")}
    return flags | {"desirable": needs.data is Data.UNPAIRED and not needs.control_text}


def needs(loss: Loss) -> Failures:
    """A declared need is used: the value moves when it is perturbed. One that is not declared is not used."""
    failures = []
    flags = _declared_flags(loss.needs)
    for need, perturb in _perturbations(loss.needs.data).items():
        moved = False
        for seed in SEEDS:
            # Everything is there, so that a plugin that reads what it did not declare is seen reading it.
            full = samples.random_numbers(loss.needs.data, seed=seed)
            before, after = value_of(loss, full), value_of(loss, perturb(full, seed))
            moved |= not torch.allclose(before, after, rtol=1e-9, atol=1e-12)
        if flags[need] and not moved:
            failures.append(f"{need} is declared, but the value does not depend on it")
        if moved and not flags[need]:
            failures.append(f"{need} is not declared, but the value depends on it")
    return failures + _marker_needs(loss)


def _marker_needs(loss: Loss) -> Failures:
    failures = []
    for flag, attribute in (("moving_reference", "reference_update"), ("state", "initial_state")):
        if getattr(loss.needs, flag) and not hasattr(loss, attribute):
            failures.append(f"{flag} is declared, but there is no `{attribute}`")
    good_and_bad = getattr(loss, "control_text", None)
    if loss.needs.control_text and not (isinstance(good_and_bad, tuple) and len(set(good_and_bad)) == 2):
        failures.append("control_text is declared, but `control_text` is not a pair of different texts (good, bad)")
    return failures


def batch_laws(loss: Loss) -> Failures:
    """Order and padding change no value; neither does a split, unless the loss is coupled, and then one does."""
    failures, depends = [], False
    for seed in SEEDS:
        full = samples.random_numbers(loss.needs.data, seed=seed)
        numbers = samples.declared(loss.needs, full)
        size = len(numbers["ids"])
        whole = value_of(loss, numbers)
        order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        if not torch.allclose(value_of(loss, samples.rows(numbers, order)), whole[order], rtol=1e-12, atol=1e-12):
            failures.append(f"seed {seed}: another order of the batch gives other values")
        if not torch.allclose(value_of(loss, samples.padded(loss.needs.data, numbers)), whole, rtol=1e-12, atol=1e-12):
            failures.append(f"seed {seed}: padding changes the value")
        halves = [samples.rows(numbers, index) for index in torch.arange(size).chunk(2)]
        apart = torch.cat([value_of(loss, half) for half in halves])
        depends |= not torch.allclose(apart, whole, rtol=1e-9, atol=1e-12)
    if depends and not loss.needs.coupled:
        failures.append("values depend on the other examples: declare `coupled`")
    if not depends and loss.needs.coupled:
        failures.append("coupled is declared, but values do not depend on the other examples")
    return failures


def state(loss: Loss) -> Failures:
    if not loss.needs.state:
        unexpected = call(
            loss, build(loss.needs, samples.declared(loss.needs, samples.random_numbers(loss.needs.data, seed=0)))
        ).state
        return ["returns a state, but `state` is not declared"] if unexpected is not None else []
    failures = []
    start: State = loss.initial_state()  # type: ignore[attr-defined]
    kept = {name: value.clone() for name, value in start.items()}
    states: list[State] = []
    for seed in (0, 1):
        numbers = samples.declared(loss.needs, samples.random_numbers(loss.needs.data, seed=seed))
        output = call(loss, build(loss.needs, numbers), states[-1] if states else start)
        if output.state is None or set(output.state) != set(start):
            return [f"the new state must have the names {sorted(start)}"]
        if any(value.requires_grad for value in output.state.values()):
            failures.append("the state must be detached")
        states.append(output.state)
    if any(not torch.equal(kept[name], start[name]) for name in kept):
        failures.append("the state that was passed in was changed")
    numbers = samples.declared(loss.needs, samples.random_numbers(loss.needs.data, seed=1))
    fresh, carried = value_of(loss, numbers, start), value_of(loss, numbers, states[0])
    if torch.allclose(fresh, carried, rtol=1e-9, atol=1e-12):
        failures.append("state is declared, but the value does not depend on it")
    return failures
