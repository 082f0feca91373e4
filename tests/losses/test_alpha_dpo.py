"""Proofs of `alpha_dpo`."""

from __future__ import annotations

import math

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import THREE, close, softplus
from tests.losses.identities import Sides, identity, pairs, values

NOT_TESTED = {
    "alpha_dpo parity": "not in TRL",
    "alpha_dpo at_reference": "depends on the reference's margin",
}


def test_alpha_dpo_by_hand() -> None:
    d = [0.375, 0.5, 0.0]  # -1 + 1.375, -0.5 + 1, -1 + 1
    moved = [d[0] - (-1.5 + 0.875), d[1] - (-0.4 + 1.25), d[2] - (-1.0 + 0.75)]
    mean = sum(moved) / 3
    deviation = math.sqrt(sum((m - mean) ** 2 for m in moved) / 2)
    z = [(m - 0.1 * mean) / (0.1 * deviation) for m in moved]
    expected = [softplus(-2 * (a - 0.5 - 0.2 * b)) for a, b in zip(d, z, strict=True)]
    assert evaluate(load("alpha_dpo", alpha=0.2), **THREE) == close(expected)


def test_alpha_dpo_has_no_z_score_in_a_batch_without_deviation() -> None:
    """At step 0 every margin is the same: 0/0 must be 0, and rounding of 1e-6 nats must not become a z-score of 1."""
    same = THREE | {"chosen": THREE["ref_chosen"], "rejected": THREE["ref_rejected"]}
    plain = evaluate(load("simpo"), **same)
    assert evaluate(load("alpha_dpo", alpha=10.0), **same) == close(plain)
    rounded = same | {"chosen": [value + error for value, error in zip(same["chosen"], (1e-6, 0, -1e-6), strict=True)]}
    assert evaluate(load("alpha_dpo", alpha=10.0), **rounded) == close(plain, abs=1e-5)


@identity("alpha_dpo(alpha=0.0) = simpo")
def test_alpha_dpo_is_simpo(seed: int) -> Sides:
    return values("alpha_dpo", pairs(seed), alpha=0.0), values("simpo", pairs(seed))
