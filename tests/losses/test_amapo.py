"""Proofs of `amapo`."""

from __future__ import annotations

import math

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import close, softplus
from tests.losses.identities import Sides, identity, pairs, values

NOT_TESTED = {
    "amapo parity": "not in TRL",
}


def test_amapo_by_hand() -> None:
    two = {
        "chosen": [-2.0, -3.0],  # per token -1, -3
        "rejected": [-5.5, -2.5],  # per token -1.375, -2.5
        "chosen_num_tokens": [2, 1],
        "rejected_num_tokens": [4, 1],
    }
    d = [0.375, -0.5]
    mean, deviation = -0.0625, 0.875 / math.sqrt(2)  # (n - 1) deviation of two values: their distance / sqrt 2
    margin = math.exp(mean * (mean - d[1]) / deviation)  # only the second is below the mean
    expected = [softplus(-2 * d[0]), softplus(-2 * (d[1] - margin))]
    assert evaluate(load("amapo", beta=2.0), **two) == close(expected)


@identity("amapo on one pair = simpo(gamma_beta_ratio=0)")
def test_amapo_on_one_pair_is_simpo(seed: int) -> Sides:
    one = {name: value[:1] for name, value in pairs(seed).items()}
    return values("amapo", one), values("simpo", one, beta=3.0, gamma_beta_ratio=0.0)
