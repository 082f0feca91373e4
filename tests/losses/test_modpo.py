"""Proofs of `modpo`."""

from __future__ import annotations

import math

import torch

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import PAIR, SAME_SIDES, close, on_pair, softplus
from tests.losses.identities import Sides, identity, output, pairs, values

NOT_TESTED = {
    "modpo parity": "not in TRL",
}


def test_modpo_by_hand() -> None:
    # beta Delta = 1.5, score gap 1.25
    assert on_pair("modpo", beta=0.5, weight=0.25) == close(softplus(-(1.5 - 0.75 * 1.25) / 0.25))


def test_modpo_logs_the_argument_of_its_loss() -> None:
    numbers = {name: torch.tensor(value, dtype=torch.float64) for name, value in PAIR.items()}
    found = output("modpo", numbers, beta=0.5, weight=0.25)
    assert found.chosen_reward is not None
    assert found.rejected_reward is not None
    assert found.chosen_reward.item() == close((0.5 * 1.0 - 0.75 * 1.5) / 0.25)
    assert found.rejected_reward.item() == close((0.5 * -2.0 - 0.75 * 0.25) / 0.25)


def test_modpo_at_reference() -> None:
    loss = load("modpo", weight=0.25)
    assert evaluate(loss, **SAME_SIDES, chosen_score=[2.0], rejected_score=[1.0]) == close([math.log(1 + math.exp(3))])


@identity("modpo(weight=1.0) = dpo")
def test_modpo_with_one_objective_is_dpo(seed: int) -> Sides:
    return values("modpo", pairs(seed), weight=1.0), values("dpo", pairs(seed))
