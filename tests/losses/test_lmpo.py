"""Proofs of `lmpo`."""

from __future__ import annotations

import math
import statistics

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import THREE, close, softplus
from tests.losses.identities import Sides, identity, pairs, values

NOT_TESTED = {
    "lmpo parity": "not in TRL",
}


def test_lmpo_by_hand() -> None:
    # l: -1, -0.5, -1 and -1.375, -1, -1; n: 2, 5, 1 and 4, 2, 2
    exponents = [
        (-1 * 3 / 2, -1.375 * 3 / 4),
        (-0.5 * 3.5 / 5, -1 * 3.5 / 2),
        (-1 * 1.5 / 1, -1 * 1.5 / 2),
    ]
    raw = []
    for better, worse in exponents:
        p, q = math.exp(better), math.exp(worse)
        raw.append((1 - p) * (1 - (p - q) ** 5) / 2)
    z = [(m - statistics.mean(raw)) / statistics.stdev(raw) for m in raw]
    gaps = [0.375, 0.5, 0.0]
    expected = [softplus(-(2 * (d - 0.25) - 0.4 * s)) for d, s in zip(gaps, z, strict=True)]
    loss = load("lmpo", beta=2.0, gamma_beta_ratio=0.25, lam=0.4)
    assert evaluate(loss, **THREE) == close(expected)


@identity("lmpo(lam=0.0) = simpo(beta=2.0, gamma_beta_ratio=0.5)")
def test_lmpo_without_growth_is_simpo(seed: int) -> Sides:
    return values("lmpo", pairs(seed), lam=0.0), values("simpo", pairs(seed), beta=2.0, gamma_beta_ratio=0.5)


def test_lmpo_asks_most_where_the_chosen_side_is_unlikely() -> None:
    sides = {
        "chosen": [-4.0, -0.1],
        "rejected": [-4.0, -0.1],
        "chosen_num_tokens": [1, 1],
        "rejected_num_tokens": [1, 1],
    }
    unlikely, likely = evaluate(load("lmpo"), **sides)
    assert unlikely > likely
