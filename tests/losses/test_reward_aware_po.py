"""Proofs of `reward_aware_po`."""

from __future__ import annotations

import math

import pytest

from prefopt.losses.reward_aware_po import Distance
from tests.losses.hand import close, on_pair, sigmoid
from tests.losses.identities import Sides, identity, label_gap, pairs, values
from tests.losses.optima import SMALL, distance

NOT_TESTED = {
    "reward_aware_po parity": "not in TRL",
    "reward_aware_po at_reference": "depends on the scores",
}


@pytest.mark.parametrize("distance", Distance)
def test_reward_aware_po_by_hand(distance: Distance) -> None:
    a, b = sigmoid(1.5), sigmoid(2 * 1.25)
    expected = {
        Distance.SQUARE: (1.5 - 2.5) ** 2,
        Distance.BACKWARD_KL: b * math.log(b / a) + (1 - b) * math.log((1 - b) / (1 - a)),
        Distance.FORWARD_KL: a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b)),
    }
    assert on_pair("reward_aware_po", beta=0.5, eta=2.0, distance=distance) == close(expected[distance])


@identity("reward_aware_po(distance=square, beta=0.3) = distill_dpo(beta=0.3)")
def test_reward_aware_po_square_is_distill_dpo(seed: int) -> Sides:
    return values("reward_aware_po", pairs(seed), distance=Distance.SQUARE, beta=0.3), values(
        "distill_dpo", pairs(seed), beta=0.3
    )


@identity("reward_aware_po(backward_kl) at the label's log-odds = cdpo - H(epsilon)")
def test_reward_aware_po_backward_kl_is_cdpo(seed: int) -> Sides:
    kl = values("reward_aware_po", label_gap(seed, 0.1), distance=Distance.BACKWARD_KL, beta=0.1)
    entropy = -0.1 * math.log(0.1) - 0.9 * math.log(0.9)
    return kl, values("cdpo", pairs(seed)) - entropy


@identity("reward_aware_po(forward_kl) at the label's log-odds = exo")
def test_reward_aware_po_forward_kl_is_exo(seed: int) -> Sides:
    return (
        values("reward_aware_po", label_gap(seed, 0.1), distance=Distance.FORWARD_KL, beta=0.1),
        values("exo", pairs(seed), label_smoothing=0.1),
    )


def test_reward_aware_po_reaches_the_optimum_of_dpo() -> None:
    assert distance("reward_aware_po", {"beta": 1.0, "eta": 1.0}, SMALL.reward, world=SMALL) < 1e-4
