"""Proofs of `bdpo`."""

from __future__ import annotations

import math

from tests.losses.hand import LOG2, close, on_pair, softplus
from tests.losses.identities import Sides, identity, pairs, values
from tests.losses.step_0 import at_reference, sides_at_step_0

NOT_TESTED = {
    "bdpo parity": "not in TRL",
}


def test_bdpo_by_hand() -> None:
    mixed = math.log(0.25 * math.exp(-2) + 0.75)
    assert on_pair("bdpo", beta=0.5, lam=0.25) == close(softplus(-0.5 * (1 - mixed)))


def test_bdpo_at_reference() -> None:
    assert at_reference("bdpo") == close(LOG2)


def test_bdpo_moves_the_rejected_side_less_at_step_0() -> None:
    assert sides_at_step_0("bdpo", lam=0.25) == close((-0.5, 0.125))  # lambda times that of dpo


@identity("bdpo(lam=1.0) = dpo")
def test_bdpo_is_dpo(seed: int) -> Sides:
    return values("bdpo", pairs(seed), lam=1.0), values("dpo", pairs(seed))
