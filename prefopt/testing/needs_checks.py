"""Checks that declared needs are used and no others, and that batches and states obey their laws."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from prefopt.plugin import PERTURBED, Data, Loss, Needs, Ranking, State, traits
from prefopt.testing import samples
from prefopt.testing.numbers import SIDES, Numbers, build, call, map_batch, value_of, whole
from prefopt.testing.value_checks import Replay

Failures = list[str]
SEEDS = range(5)


def _perturbations(data: Data) -> dict[str, Callable[[Numbers, int], Numbers]]:
    """For each need, a function that changes only what that need covers."""
    length_names = [lengths for side, lengths in SIDES[data] if side != "mismatched"]

    def reference(name: str) -> bool:
        return name.startswith("ref_")

    def lengths(numbers: Numbers, seed: int) -> Numbers:
        generator = torch.Generator().manual_seed(seed)
        longer, most = (dict(numbers), 200) if data is Data.LISTS else (samples.padded(data, numbers), 4)
        for name in length_names:
            more = torch.randint(1, most, numbers[name].shape, generator=generator)
            longer[name] = torch.where(numbers[name] > 0, numbers[name] + more, 0)
        return longer

    def scores(numbers: Numbers, seed: int) -> Numbers:
        other = samples.random_numbers(data, seed=seed + 1000, examples=len(numbers["ids"]))
        return dict(numbers) | {n: other[n] for n in numbers if n.endswith("score") or n == "scores"}

    def noise(which: Callable[[str], bool]) -> Callable[[Numbers, int], Numbers]:
        return lambda numbers, seed: samples.perturbed(numbers, which, seed)

    found = {
        "reference": noise(reference),
        "lengths": lengths,
        "tokens": _moved_between_tokens,
        "scores": scores,
        "margin": _redrawn("margin"),
        "probability": _redrawn("probability"),
        "ties": _redrawn("tied"),
        "mismatched": noise(lambda name: name in ("mismatched", "mismatched_token")),
        "on_policy": noise(lambda name: name.startswith("old_")),
        "ended": lambda numbers, seed: {n: ~value if n == "ended" else value for n, value in numbers.items()},
        "values": noise(lambda name: name.endswith(("_value", "_value_after"))),
        **{s: noise(functools.partial(_ends_with, s)) for s in samples.STATISTICS},
    }
    if data is Data.PAIRS:
        found["opponent"] = lambda numbers, seed: dict(numbers) | {"opponent": ~numbers["opponent"]}
    if data is Data.UNPAIRED:
        found["desirable"] = lambda numbers, seed: dict(numbers) | {"desirable": ~numbers["desirable"]}
    return found


def _moved_between_tokens(numbers: Numbers, seed: int) -> Numbers:
    """Move log-prob between the tokens of a completion, without changing its sum."""
    generator = torch.Generator().manual_seed(seed)
    moved = dict(numbers)
    for name in numbers:
        if name.endswith("_token") and not name.startswith("ref_"):
            inside = (numbers[name] != 0).double()
            noise = torch.rand(inside.shape, generator=generator, dtype=torch.float64) * inside
            mean = noise.sum(-1, keepdim=True) / inside.sum(-1, keepdim=True).clamp(min=1)
            moved[name] = numbers[name] + (noise - mean) * inside
    return moved


def _redrawn(name: str) -> Callable[[Numbers, int], Numbers]:
    def change(numbers: Numbers, seed: int) -> Numbers:
        if name not in numbers:
            return numbers
        value = numbers[name]
        return dict(numbers) | {name: ~value if value.dtype == torch.bool else value * 0.9}

    return change


def _ends_with(suffix: str, name: str) -> bool:
    return name.endswith(suffix)


def _declared_flags(needs: Needs) -> dict[str, bool]:
    of_data = ("scores", "margin", "probability", "ties", "mismatched")
    names = ("reference", "lengths", "tokens", *of_data, "on_policy", "ended", "values", "opponent")
    flags = {name: bool(getattr(needs, name)) for name in names}
    flags |= {name: any(v.value == name for v in needs.vocab) for name in samples.STATISTICS}
    return flags | {"desirable": needs.data is Data.UNPAIRED and not needs.control_text}


def needs(loss: Loss) -> Failures:
    """Check that the value depends on each declared need, and on nothing else."""
    failures = []
    flags = _declared_flags(loss.needs)
    for need, perturb in _perturbations(loss.needs.data).items():
        moved = False
        for seed in SEEDS:
            # All numbers are present, so that reading an undeclared one shows.
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
    markers = (("moving_reference", "reference_update"), ("state", "initial_state"), ("on_policy", "targets"),
               ("opponent", "mixture_coef"))  # fmt: skip
    for flag, attribute in markers:
        if getattr(loss.needs, flag) and not hasattr(loss, attribute):
            failures.append(f"{flag} is declared, but there is no `{attribute}`")
    if loss.needs.vocab & PERTURBED and not hasattr(loss, "epsilon"):
        failures.append("log_away or log_toward is declared, but there is no `epsilon`")
    good_and_bad = getattr(loss, "control_text", None)
    if loss.needs.control_text and not (isinstance(good_and_bad, tuple) and len(set(good_and_bad)) == 2):
        failures.append("control_text is declared, but `control_text` is not a pair of different texts (good, bad)")
    return failures


def ranking(loss: Loss) -> Failures:
    """Check that a pointwise loss on pairs or lists is a sum of terms of single completions, and no other is."""
    data, declared = loss.needs.data, traits(loss).ranking
    if data not in (Data.PAIRS, Data.LISTS):
        return []
    compares = any(_interaction(loss, seed) for seed in SEEDS)
    if compares and declared is Ranking.POINTWISE:
        return ["ranking is pointwise, but the value compares completions"]
    if not compares and declared is not Ranking.POINTWISE:
        return [f"no term compares completions: declare `ranking` as pointwise, not {declared.value}"]
    return []


def _interaction(loss: Loss, seed: int) -> bool:
    """Whether moving two completions together changes the value otherwise than moving each, stop-gradients constant."""
    numbers, replay, value = samples.random_numbers(loss.needs.data, seed=seed), Replay(), {}
    for places in ((), (0,), (1,), (0, 1)):
        with replay:
            value[places] = call(loss, build(loss.needs, _lowered(numbers, places))).loss
        replay.rewind()
    difference = value[0, 1] - value[0,] - value[1,] + value[()]
    return bool((difference.abs() > 1e-9 * (1 + value[0, 1].abs())).any())


def _lowered(numbers: Numbers, places: tuple[int, ...]) -> Numbers:
    """Lower the policy's log-probs of the first (chosen) or the second (rejected) completion, or of both."""
    lowered = dict(numbers)
    for place in places:
        side = "completions" if "completions" in numbers else ("chosen", "rejected")[place]
        for name in (side, f"{side}_token"):
            less = lowered[name].clone()
            part = less[:, place] if side == "completions" else less
            part -= 7.0 * (part != 0)
            lowered[name] = less
    return lowered


def batch_laws(loss: Loss) -> Failures:
    """Check that order and padding change no value, and that a split does exactly where the loss is coupled."""
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
        apart = torch.cat([_part(loss, numbers, index) for index in torch.arange(size).chunk(2)])
        depends |= not torch.allclose(apart, whole, rtol=1e-9, atol=1e-12)
    if depends and not loss.needs.coupled:
        failures.append("values depend on the other examples: declare `coupled`")
    if not depends and loss.needs.coupled:
        failures.append("coupled is declared, but values do not depend on the other examples")
    return failures


def _part(loss: Loss, numbers: Numbers, index: Tensor) -> Tensor:
    """The values of some examples of a batch; the targets of an on-policy loss are those of the whole."""
    if not loss.needs.on_policy:
        return value_of(loss, samples.rows(numbers, index))
    batch = whole(loss, build(loss.needs, numbers))
    return call(loss, map_batch(batch, lambda value: value[index])).loss.detach()


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
            return [f"the new state must have the keys {sorted(start)}"]
        if any(value.requires_grad for value in output.state.values()):
            failures.append("the state must be detached")
        states.append(output.state)
    if any(not torch.equal(kept[name], start[name]) for name in kept):
        failures.append("the state that was passed in was changed")
    numbers = samples.declared(loss.needs, samples.random_numbers(loss.needs.data, seed=1))
    fresh, carried = value_of(loss, numbers, start), value_of(loss, numbers, states[0])
    if torch.allclose(fresh, carried, rtol=1e-9, atol=1e-12):
        failures.append("state is declared, but the value does not depend on it")
    again = value_of(loss, numbers, call(loss, build(loss.needs, numbers), start).state)
    if not depends_on_ids(loss, numbers) and not torch.allclose(fresh, again, rtol=1e-6, atol=1e-9):
        failures.append("the first batch, seen again, has another value: the average must start from its statistics")
    return failures


def depends_on_ids(loss: Loss, numbers: Numbers) -> bool:
    """Whether a loss draws at random by the ids of records, so that no other library draws the same."""
    value = value_of(loss, numbers)
    shifted = (dict(numbers) | {"ids": numbers["ids"] + shift} for shift in range(1, 9))
    return any(not torch.equal(value_of(loss, other), value) for other in shifted)
