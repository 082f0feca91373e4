"""Proofs of `h_dpo`."""

from __future__ import annotations

import math

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import SAME_SIDES, close, on_pair, softplus
from tests.losses.identities import Sides, identity, pairs, values
from tests.losses.optima import SMALL, distance

NOT_TESTED = {
    "h_dpo parity": "not in TRL",
}


def test_h_dpo_by_hand() -> None:
    # d = 3.5, d_ref = 0.5
    assert on_pair("h_dpo", beta=0.5, alpha=0.8) == close(softplus(-0.5 * (0.8 * 3.5 - 0.5)))


def test_h_dpo_at_reference() -> None:
    # d_ref = -1 - (-2) = 1
    value = evaluate(load("h_dpo", beta=0.5, alpha=0.8), **SAME_SIDES)
    assert value == close([math.log(1 + math.exp(-0.5 * -0.2 * 1))])


@identity("h_dpo(alpha=1.0) = dpo")
def test_h_dpo_is_dpo(seed: int) -> Sides:
    return values("h_dpo", pairs(seed), alpha=1.0), values("dpo", pairs(seed))


def test_h_dpo_reaches_the_sharpened_reference() -> None:
    alpha = 0.8
    exponent = (1 / alpha - 1) * SMALL.reference + SMALL.reward / alpha
    assert distance("h_dpo", {"beta": 1.0, "alpha": alpha}, exponent, world=SMALL) < 1e-3
