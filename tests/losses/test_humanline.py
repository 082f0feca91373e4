"""Proofs of `humanline_dpo`, `humanline_kto`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prefopt.losses.humanline import HumanlineDPO
from prefopt.losses.registry import load
from prefopt.losses.tr_dpo import TRDPO
from prefopt.plugin import Data
from prefopt.testing import evaluate
from prefopt.testing.samples import random_numbers
from tests.losses.hand import LOG2, close, sigmoid, softplus
from tests.losses.identities import Sides, identity, output, pairs, values
from tests.losses.step_0 import at_reference
from tests.train import tiny

NOT_TESTED = {
    "humanline_dpo parity": "not in TRL",
    "humanline_kto parity": "not in TRL",
}
# rho_t: 0.25, 3 and -2, -0.5; clamped to [-1, 1.5]: 1.75 and -1.5
TOKENS = {
    "chosen_token": [[-1.0, -0.5]],
    "ref_chosen_token": [[-1.25, -3.5]],
    "rejected_token": [[-3.0, -1.0]],
    "ref_rejected_token": [[-1.0, -0.5]],
}
# rho_t: 0.25, 3 (desirable) and -2, -0.5 (undesirable); mismatched 2, 0.5 and 0, -1.5
ITEMS = {
    "completion_token": TOKENS["chosen_token"] + TOKENS["rejected_token"],
    "ref_completion_token": TOKENS["ref_chosen_token"] + TOKENS["ref_rejected_token"],
    "mismatched_token": [[-1.0, -1.0], [-1.0, -2.0]],
    "ref_mismatched_token": [[-3.0, -1.5], [-1.0, -0.5]],
    "desirable": [True, False],
}


def test_humanline_dpo_by_hand() -> None:
    assert evaluate(load("humanline_dpo", beta=0.5), **TOKENS) == close([softplus(-0.5 * (1.75 + 1.5))])


def test_humanline_dpo_at_reference() -> None:
    assert at_reference("humanline_dpo") == close(LOG2)


@identity("humanline_dpo(low=-1000.0, high=1000.0) = dpo")
def test_humanline_dpo_unclamped_is_dpo(seed: int) -> Sides:
    return values("humanline_dpo", pairs(seed), low=-1000.0, high=1000.0), values("dpo", pairs(seed))


def test_humanline_kto_by_hand() -> None:
    z0 = ((1.5 + 0.5) + (0 - 1.0)) / 2
    expected = [1.5 * (1 - sigmoid(0.5 * (1.75 - z0))), 0.75 * (1 - sigmoid(0.5 * (z0 + 1.5)))]
    loss = load("humanline_kto", beta=0.5, desirable_weight=1.5, undesirable_weight=0.75)
    assert evaluate(loss, **ITEMS) == close(expected)


def test_humanline_kto_at_reference() -> None:
    assert at_reference("humanline_kto") == close(0.5)


@identity("humanline_kto(low=-1000.0, high=1000.0) = kto")
def test_humanline_kto_unclamped_is_kto(seed: int) -> Sides:
    numbers = random_numbers(Data.UNPAIRED, seed=seed)
    return values("humanline_kto", numbers, low=-1000.0, high=1000.0), values("kto", numbers)


def test_humanline_has_no_gradient_through_a_clamped_token() -> None:
    loss = load("humanline_dpo")
    numbers = {name: torch.tensor(value, dtype=torch.float64) for name, value in TOKENS.items()}
    numbers["chosen_token"].requires_grad_()
    output("humanline_dpo", numbers).loss.sum().backward()
    gradient = numbers["chosen_token"].grad
    assert gradient is not None
    assert loss.beta == 0.1
    assert (gradient != 0).tolist() == [[True, False]]


@pytest.mark.parametrize("steps", [1, 2])
def test_humanline_reference_is_the_policy_of_a_step_before(steps: int, tmp_path: Path) -> None:
    """A hard update after each step leaves no progress; one that lags leaves that of the last step."""
    records = tiny.records(Data.PAIRS, 4)
    lagging = HumanlineDPO(low=-99.0, high=99.0, sync_steps=steps)
    found = {
        loss: tiny.run(loss, records, tmp_path / type(loss).__name__, max_steps=3).losses
        for loss in (TRDPO(alpha=1.0, tau=steps), lagging)
    }
    after, before = found.values()
    assert after[0] == before[0] == close(LOG2)
    assert after[steps] == close(LOG2, abs=1e-6)
    assert max(before[1:]) < LOG2 - 1e-3
