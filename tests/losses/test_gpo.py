"""Proofs of `gpo`."""

from __future__ import annotations

import math

import pytest

from prefopt.losses.gpo import Convex
from tests.losses.hand import close, on_pair, softplus
from tests.losses.identities import Sides, identity, pairs, values
from tests.losses.optima import SMALL, distance
from tests.losses.step_0 import at_reference, turns_back_at

NOT_TESTED = {
    "gpo parity": "not in TRL",
}


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (Convex.LOGISTIC, softplus(-1.5)),
        (Convex.HINGE, 0.0),
        (Convex.SQUARE, 0.25),
        (Convex.EXPONENTIAL, math.exp(-1.5)),
        (Convex.TRUNCATED_SQUARE, 0.0),
        (Convex.SAVAGE, 1 / (1 + math.exp(1.5)) ** 2),
    ],
)
def test_gpo_by_hand(f: Convex, expected: float) -> None:
    assert on_pair("gpo", beta=0.5, f=f) == close(expected)


def test_gpo_truncated_square_below_its_margin() -> None:
    assert on_pair("gpo", beta=0.1, f=Convex.TRUNCATED_SQUARE) == close(0.7**2)


def test_gpo_at_reference() -> None:
    assert at_reference("gpo", f=Convex.SAVAGE) == close(0.25)


def test_gpo_at_reference_exponential() -> None:
    assert at_reference("gpo", f=Convex.EXPONENTIAL) == close(1.0)


def test_gpo_turns_back_past_its_target() -> None:
    assert turns_back_at(1.0, "gpo", beta=1.0, f=Convex.SQUARE)


@identity("gpo(f=logistic) = dpo")
def test_gpo_logistic_is_dpo(seed: int) -> Sides:
    return values("gpo", pairs(seed), f=Convex.LOGISTIC), values("dpo", pairs(seed))


@identity("gpo(f=hinge) = hinge")
def test_gpo_hinge_is_hinge(seed: int) -> Sides:
    return values("gpo", pairs(seed), f=Convex.HINGE), values("hinge", pairs(seed))


@identity("gpo(square) = beta^2 ipo_sum(tau=beta/2)")
def test_gpo_square_is_ipo_sum(seed: int) -> Sides:
    return values("gpo", pairs(seed), f=Convex.SQUARE, beta=0.3), 0.3**2 * values("ipo_sum", pairs(seed), tau=0.15)


def test_gpo_reaches_the_optimum_of_dpo_savage() -> None:
    assert (
        distance("gpo", {"beta": 1.0, "f": Convex.SAVAGE}, SMALL.reward, world=SMALL) < 1e-4
    )  # proper with the logistic link


def test_gpo_reaches_the_optimum_of_dpo_exponential() -> None:
    assert (
        distance("gpo", {"beta": 0.5, "f": Convex.EXPONENTIAL}, SMALL.reward, world=SMALL) < 1e-4
    )  # p e^-z = (1 - p) e^z: z is half the log-odds
