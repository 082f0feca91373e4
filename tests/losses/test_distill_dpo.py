"""Proofs of `distill_dpo`."""

from __future__ import annotations

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import SAME_SIDES, close, on_pair
from tests.losses.optima import SMALL, distance

NOT_TESTED = {
    "distill_dpo parity": "not in TRL",
}


def test_distill_dpo_by_hand() -> None:
    assert on_pair("distill_dpo", beta=0.5) == close((1.5 - 1.25) ** 2)


def test_distill_dpo_at_reference() -> None:
    assert evaluate(load("distill_dpo"), **SAME_SIDES, chosen_score=[3.5], rejected_score=[1.0]) == close([2.5**2])


def test_distill_dpo_reaches_the_optimum_of_dpo() -> None:
    assert distance("distill_dpo", {"beta": 1.0}, SMALL.reward, world=SMALL) < 1e-4
