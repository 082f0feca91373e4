"""Proofs of `odpo`."""

from __future__ import annotations

import math

import pytest

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import PAIR, SAME_SIDES, close, on_pair, softplus
from tests.losses.identities import Sides, identity, pairs, replaced, values

NOT_TESTED = {
    "odpo parity": "not in TRL",
}


def test_odpo_by_hand() -> None:
    assert on_pair("odpo", beta=0.5, alpha=2.0) == close(softplus(-(1.5 - 2 * math.log(1.25))))


def test_odpo_refuses_ties() -> None:
    with pytest.raises(ValueError, match="chosen_score > rejected_score"):
        evaluate(load("odpo"), **(PAIR | {"chosen_score": [0.25]}))


def test_odpo_at_reference() -> None:
    assert evaluate(load("odpo", alpha=2.0), **SAME_SIDES, chosen_score=[3.5], rejected_score=[1.0]) == close(
        [math.log(1 + 2.5**2)]
    )


@identity("odpo(alpha=0.0) = dpo")
def test_odpo_is_dpo(seed: int) -> Sides:
    return values("odpo", pairs(seed), alpha=0.0), values("dpo", pairs(seed))


@identity("odpo at a gap of 1 = dpo")
def test_odpo_at_a_gap_of_1_is_dpo(seed: int) -> Sides:
    numbers = pairs(seed)
    return values("odpo", replaced(numbers, chosen_score=numbers["rejected_score"] + 1)), values("dpo", numbers)
