"""Proofs of `dpo_rk`, `dpo_d`."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from prefopt.testing.samples import Named
from tests.losses.hand import PAIR, SAME_SIDES, close, on_pair
from tests.losses.identities import Sides, identity, pairs, replaced, swapped, values

NOT_TESTED = {
    "dpo_rk parity": "not in TRL",
    "dpo_d parity": "not in TRL",
}
TIE = PAIR | {"tied": [True]}  # beta Delta = 1.5 at beta 0.5


def tied(numbers: Named, tie: bool) -> Named:
    return replaced(numbers, tied=torch.full_like(numbers["tied"], tie))


def total_probability(name: str, seed: int) -> Sides:
    """That y_w wins, that y_l wins, and that neither does."""
    numbers = pairs(seed)
    outcomes = (tied(numbers, False), tied(swapped(numbers), False), tied(numbers, True))
    total = torch.stack([(-values(name, outcome)).exp() for outcome in outcomes]).sum(0)
    return total, torch.ones_like(total)


def test_dpo_rk_by_hand() -> None:
    win, lose = math.exp(1.5) / (math.exp(1.5) + 2), 1 / (1 + 2 * math.exp(1.5))
    assert on_pair("dpo_rk", beta=0.5, nu=2.0) == close(-math.log(win))
    assert evaluate(load("dpo_rk", beta=0.5, nu=2.0), **TIE) == close([-math.log(1 - win - lose)])


def test_dpo_rk_at_reference() -> None:
    """nu = 3: at equal rewards a win has probability 1/4, a tie 1/2."""
    assert evaluate(load("dpo_rk"), **SAME_SIDES, tied=[False]) == close([math.log(4)])
    assert evaluate(load("dpo_rk"), **SAME_SIDES, tied=[True]) == close([math.log(2)])


@identity("dpo_rk on a pair with a winner = margin_dpo at a margin of log nu")
def test_dpo_rk_asks_for_a_margin(seed: int) -> Sides:
    numbers = tied(pairs(seed), False)
    margin = torch.full_like(numbers["margin"], math.log(3))
    return values("dpo_rk", numbers), values("margin_dpo", replaced(numbers, margin=margin))


@identity("dpo_rk's probabilities of a win, a loss and a tie = 1 in sum")
def test_dpo_rk_leaves_nothing_over(seed: int) -> Sides:
    return total_probability("dpo_rk", seed)


def test_dpo_d_by_hand() -> None:
    weights = math.exp(1.5), 1.0, 2 * 0.5 * math.exp(0.75)  # of a win, a loss, a tie
    assert on_pair("dpo_d", beta=0.5, nu=0.5) == close(-math.log(weights[0] / sum(weights)))
    assert evaluate(load("dpo_d", beta=0.5, nu=0.5), **TIE) == close([-math.log(weights[2] / sum(weights))])


def test_dpo_d_at_reference() -> None:
    """nu = 1: at equal rewards a win has probability 1/4, a tie 1/2."""
    assert evaluate(load("dpo_d"), **SAME_SIDES, tied=[False]) == close([math.log(4)])
    assert evaluate(load("dpo_d"), **SAME_SIDES, tied=[True]) == close([math.log(2)])


@identity("dpo_d(nu to 0) on a pair with a winner = dpo", tolerance=1e-6)
def test_dpo_d_without_ties_is_dpo(seed: int) -> Sides:
    return values("dpo_d", tied(pairs(seed), False), nu=1e-8), values("dpo", pairs(seed))


@identity("dpo_d's probabilities of a win, a loss and a tie = 1 in sum")
def test_dpo_d_leaves_nothing_over(seed: int) -> Sides:
    return total_probability("dpo_d", seed)


@pytest.mark.parametrize("name", ["dpo_rk", "dpo_d"])
def test_a_tie_pulls_the_rewards_together(name: str) -> None:
    """Least where both rewards are equal, and as steep on either side."""
    ratio = torch.tensor([-4.0, -1.0, 0.0, 1.0, 4.0], dtype=torch.float64)
    still = torch.zeros_like(ratio)
    numbers = {"chosen": ratio, "ref_chosen": still, "rejected": still, "ref_rejected": still, "tied": still == 0}
    found: Tensor = values(name, numbers, beta=0.5)
    assert found.tolist() == close(found.flip(0).tolist())
    assert found.argmin() == 2
