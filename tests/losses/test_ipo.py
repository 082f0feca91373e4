"""Proofs of `ipo`, `ipo_sum`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prefopt.losses.registry import load
from prefopt.testing.numbers import build, call
from prefopt.testing.samples import Named
from tests.losses.hand import close, on_pair
from tests.losses.identities import Sides, identity, pairs, same_length, values
from tests.losses.optima import SMALL, distance
from tests.losses.step_0 import at_reference, turns_back_at
from tests.losses.trl_peer import ours, trl_dpo

NOT_TESTED = {
    "ipo_sum parity": "not in TRL",
}


def test_ipo_by_hand() -> None:
    assert on_pair("ipo", tau=0.1) == close((0.5 + 0.5 - 5) ** 2)


def test_ipo_at_reference() -> None:
    assert at_reference("ipo", tau=0.1) == close(25.0)  # 1 / (4 tau^2)


@identity("ipo at lengths 1 = ipo_sum")
def test_ipo_at_lengths_1_is_ipo_sum(seed: int) -> Sides:
    return values("ipo", same_length(pairs(seed), 1)), values("ipo_sum", pairs(seed))


def test_ipo_parity(batch: Named) -> None:
    theirs = trl_dpo(batch, "ipo", beta=0.3)
    assert ours("ipo", batch, tau=0.3) == close(theirs, abs=1e-6)


def test_ipo_sum_by_hand() -> None:
    assert on_pair("ipo_sum", tau=0.1) == close((3 - 5) ** 2)


def test_ipo_sum_at_reference() -> None:
    assert at_reference("ipo_sum", tau=0.5) == close(1.0)


def test_ipo_sum_turns_back_past_its_target() -> None:
    assert turns_back_at(2.0, "ipo_sum", tau=0.25)  # Delta = 1/(2 tau)


def test_ipo_sum_reaches_the_tilt_by_win_rate() -> None:
    assert distance("ipo_sum", {"tau": 1.0}, SMALL.win_rate() / 1.0, world=SMALL) < 1e-4


@pytest.mark.parametrize(("p", "tau"), [(0.9, 0.5), (0.6, 0.1)])
def test_ipo_sum_with_two_arms(p: float, tau: float) -> None:
    """logit of the first arm = its reference's + (2p - 1) / (2 tau), where it wins with probability p."""
    reference = torch.tensor([0.3, 0.7], dtype=torch.float64).log()
    arm = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    loss = load("ipo_sum", tau=tau)
    optimizer = torch.optim.LBFGS([arm], max_iter=100, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        both = torch.cat([arm, -arm]).log_softmax(0)
        numbers = {"chosen": both, "rejected": both.flip(0), "ref_chosen": reference, "ref_rejected": reference.flip(0)}
        values = call(loss, build(loss.needs, numbers)).loss  # the first arm wins, and the second
        value = p * values[0] + (1 - p) * values[1]
        value.backward()
        return value

    optimizer.step(closure)
    logit = 2 * arm.item()  # of softmax(arm, -arm)
    assert logit == close(float(reference[0] - reference[1]) + (2 * p - 1) / (2 * tau), abs=1e-6)
