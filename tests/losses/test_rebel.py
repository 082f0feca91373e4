"""Proofs of `rebel`."""

from __future__ import annotations

import torch

from prefopt.losses.registry import load
from prefopt.planning.advice import outside_range
from prefopt.testing import evaluate
from tests.losses.hand import SAME_SIDES, close, on_pair
from tests.losses.identities import Sides, identity, pairs, replaced, values
from tests.losses.optima import SMALL, distance

NOT_TESTED = {
    "rebel parity": "not in TRL",
}


def test_rebel_by_hand() -> None:
    assert on_pair("rebel", eta=2.0) == close((3 / 2 - 1.25) ** 2)


def test_rebel_takes_the_authors_step_size() -> None:
    """eta 1e6, which they use with scores of a reward model, raises no warning."""
    assert list(outside_range(load("rebel", eta=1e6))) == []
    assert on_pair("rebel", eta=1e6) == close((3e-6 - 1.25) ** 2)


def test_rebel_at_reference() -> None:
    assert evaluate(load("rebel"), **SAME_SIDES, chosen_score=[3.5], rejected_score=[1.0]) == close([2.5**2])


@identity("rebel(eta=0.5) = distill_dpo(beta=2.0)")
def test_rebel_is_distill_dpo(seed: int) -> Sides:
    return values("rebel", pairs(seed), eta=0.5), values("distill_dpo", pairs(seed), beta=2.0)


@identity("rebel and distill_dpo at scale 1, target 1/(2 tau) = ipo_sum(tau)")
def test_rebel_and_distill_dpo_are_ipo_sum(seed: int) -> Sides:
    numbers = pairs(seed)
    target = replaced(numbers, chosen_score=numbers["rejected_score"] + 1 / (2 * 0.1))
    both = torch.stack([values("rebel", target), values("distill_dpo", target)])
    return both, values("ipo_sum", numbers).expand_as(both)


def test_rebel_reaches_the_optimum_of_dpo() -> None:
    assert distance("rebel", {"eta": 1.0}, SMALL.reward, world=SMALL) < 1e-4
