"""Proofs of `soft_dpo`, `gdpo`."""

from __future__ import annotations

import torch

from prefopt.testing.samples import Named
from tests.losses.hand import LOG2, close, on_pair, softplus
from tests.losses.identities import Sides, identity, pairs, replaced, values
from tests.losses.optima import SMALL, distance
from tests.losses.step_0 import at_reference

NOT_TESTED = {
    "soft_dpo parity": "not in TRL",
    "gdpo parity": "not in TRL",
}
WINS = 0.8  # the pair's probability


def surely(seed: int, probability: float) -> Named:
    """The pairs, all with this probability."""
    numbers = pairs(seed)
    return replaced(numbers, probability=torch.full_like(numbers["probability"], probability))


def test_soft_dpo_by_hand() -> None:
    assert on_pair("soft_dpo", beta=0.5) == close(WINS * softplus(-1.5) + (1 - WINS) * softplus(1.5))


def test_soft_dpo_at_reference() -> None:
    assert at_reference("soft_dpo") == close(LOG2)


@identity("soft_dpo at probability 1 - epsilon = cdpo at that epsilon")
def test_soft_dpo_at_one_probability_is_cdpo(seed: int) -> Sides:
    return values("soft_dpo", surely(seed, 0.8)), values("cdpo", pairs(seed), label_smoothing=0.2)


@identity("soft_dpo at probability 1 = dpo")
def test_soft_dpo_of_sure_labels_is_dpo(seed: int) -> Sides:
    return values("soft_dpo", surely(seed, 1.0)), values("dpo", pairs(seed))


def test_gdpo_by_hand() -> None:
    assert on_pair("gdpo", beta=0.5) == close(softplus(-(2 * WINS - 1) * 1.5))


def test_gdpo_at_reference() -> None:
    assert at_reference("gdpo") == close(LOG2)


@identity("gdpo at probability 3/4 = dpo(beta halved)")
def test_gdpo_at_three_to_one_is_dpo(seed: int) -> Sides:
    return values("gdpo", surely(seed, 0.75), beta=0.1), values("dpo", pairs(seed), beta=0.05)


@identity("gdpo at probability 1 = dpo")
def test_gdpo_of_sure_labels_is_dpo(seed: int) -> Sides:
    return values("gdpo", surely(seed, 1.0)), values("dpo", pairs(seed))


def test_soft_dpo_reaches_the_optimum_of_dpo() -> None:
    """A label in each order with its probability teaches what as many labels of either side would."""
    assert distance("soft_dpo", {"beta": 1.0}, SMALL.reward, world=SMALL) < 1e-4
