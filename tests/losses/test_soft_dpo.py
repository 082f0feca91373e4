"""Proofs of `soft_dpo`, `gdpo`."""

from __future__ import annotations

import math

from tests.losses.hand import LOG2, close, on_pair, sigmoid, softplus
from tests.losses.identities import Sides, identity, label_gap, pairs, values
from tests.losses.step_0 import at_reference

NOT_TESTED = {
    "soft_dpo parity": "not in TRL",
    "gdpo parity": "not in TRL",
}
WINS = sigmoid(1.25)  # of the pair's score gap


def test_soft_dpo_by_hand() -> None:
    assert on_pair("soft_dpo", beta=0.5) == close(WINS * softplus(-1.5) + (1 - WINS) * softplus(1.5))


def test_soft_dpo_at_reference() -> None:
    assert at_reference("soft_dpo") == close(LOG2)


@identity("soft_dpo at a score gap of log((1 - epsilon)/epsilon) = cdpo at that epsilon")
def test_soft_dpo_at_one_gap_is_cdpo(seed: int) -> Sides:
    return values("soft_dpo", label_gap(seed, 0.2)), values("cdpo", pairs(seed), label_smoothing=0.2)


def test_gdpo_by_hand() -> None:
    assert on_pair("gdpo", beta=0.5) == close(softplus(-(2 * WINS - 1) * 1.5))


def test_gdpo_at_reference() -> None:
    assert at_reference("gdpo") == close(LOG2)


@identity("gdpo at a score gap of log 3 = dpo(beta halved)")
def test_gdpo_at_three_to_one_is_dpo(seed: int) -> Sides:
    assert math.log((1 - 0.25) / 0.25) == close(math.log(3))
    return values("gdpo", label_gap(seed, 0.25), beta=0.1), values("dpo", pairs(seed), beta=0.05)
