"""Checks what an on-policy loss makes of a whole rollout: the shape of its targets, and what rewards + 1 change."""

from __future__ import annotations

import torch

from prefopt.plugin import Loss, traits
from prefopt.testing import samples
from prefopt.testing.numbers import build, value_of, whole

Failures = list[str]
SEEDS = range(3)


def targets(loss: Loss) -> Failures:
    """Check the targets of an on-policy loss, and that a constant added to all rewards acts as it declares."""
    if not loss.needs.on_policy:
        return []
    failures, moved = [], False
    for seed in SEEDS:
        numbers = samples.declared(loss.needs, samples.random_numbers(loss.needs.data, seed=seed))
        shape = numbers["scores"].shape
        found = whole(loss, build(loss.needs, numbers)).targets  # type: ignore[union-attr]
        for name, value in found.items():
            if tuple(value.shape[:2]) != tuple(shape) or value.ndim > 3:
                failures.append(f"the target {name!r} has shape {tuple(value.shape)}, not one value for each sample "
                                f"{tuple(shape)} or for each of its tokens")  # fmt: skip
            elif not value.isfinite().all():
                failures.append(f"the target {name!r} is not finite")
        if failures:
            return failures[:3]
        higher = {name: value + 1 if name == "scores" else value for name, value in numbers.items()}
        moved |= not torch.allclose(value_of(loss, higher), value_of(loss, numbers), rtol=1e-9, atol=1e-9)
    if moved and traits(loss).shift_invariant:
        failures.append("shift_invariant is declared, but rewards + 1 change the value")
    if not moved and not traits(loss).shift_invariant:
        failures.append("rewards + 1 change nothing: declare `shift_invariant`")
    return failures[:3]
