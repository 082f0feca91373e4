"""Proofs of `r_dpo`."""

from __future__ import annotations

import pytest

from tests.losses.hand import LOG2, close, on_pair, softplus
from tests.losses.identities import Sides, identity, pairs, values
from tests.losses.optima import SMALL, distance
from tests.losses.step_0 import at_reference

NOT_TESTED = {
    "r_dpo parity": "not in TRL",
}


def test_r_dpo_by_hand() -> None:
    assert on_pair("r_dpo", beta=0.5, alpha=0.1) == close(softplus(-(1.5 + 0.1 * (2 - 4))))


def test_r_dpo_at_reference() -> None:
    assert at_reference("r_dpo") == close(LOG2)


@identity("r_dpo(alpha=0.0) = dpo")
def test_r_dpo_is_dpo(seed: int) -> Sides:
    return values("r_dpo", pairs(seed), alpha=0.0), values("dpo", pairs(seed))


@pytest.mark.slow
def test_r_dpo_reaches_the_optimum_with_a_price_on_length() -> None:
    exponent = (SMALL.reward - 0.2 * SMALL.num_tokens) / 1.0
    assert distance("r_dpo", {"beta": 1.0, "alpha": 0.2}, exponent, world=SMALL) < 1e-4
    rewarded = SMALL.reward + 0.2 * SMALL.num_tokens
    assert distance("r_dpo", {"beta": 1.0, "alpha": 0.2}, rewarded, world=SMALL) > 0.05
