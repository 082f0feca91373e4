"""Proofs of `sppo`, `sppo_soft`, `sppo_list`."""

from __future__ import annotations

import torch

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from prefopt.testing.samples import Named
from tests.losses.hand import LIST, close, on_pair, sigmoid
from tests.losses.identities import Sides, as_list, identity, pairs, replaced, values
from tests.losses.step_0 import at_reference, turns_back_at
from tests.losses.trl_peer import ours, trl_dpo

NOT_TESTED = {
    "sppo_soft parity": "not in TRL",
    "sppo_list parity": "not in TRL",
    "sppo_soft at_reference": "depends on the scores",
}


def test_sppo_by_hand() -> None:
    assert on_pair("sppo", beta=0.1) == close((1 - 5) ** 2 + (-2 + 5) ** 2)


def test_sppo_at_reference() -> None:
    assert at_reference("sppo", beta=0.1) == close(50.0)  # 1 / (2 beta^2)


def test_sppo_turns_back_past_its_target() -> None:
    assert turns_back_at(2.0, "sppo", beta=0.25)  # rho_w = 1/(2 beta)


@identity("sppo = 2 (cal_dpo - dpo(beta=1))", tolerance=1e-06)
def test_sppo_from_cal_dpo(seed: int) -> Sides:  # values near 5e5: 1e-6 is 2e-12 of them
    return values("sppo", pairs(seed)), 2 * (values("cal_dpo", pairs(seed)) - values("dpo", pairs(seed), beta=1.0))


def test_sppo_parity(batch: Named) -> None:
    theirs = trl_dpo(batch, "sppo_hard", beta=0.2)
    assert ours("sppo", batch, beta=0.2) == close(theirs, abs=1e-6)


def test_sppo_soft_by_hand() -> None:
    target = (sigmoid(1.25) - 0.5) / 0.1
    assert on_pair("sppo_soft", beta=0.1) == close((1 - target) ** 2 + (-2 + target) ** 2)


@identity("sppo_soft at a sure win = sppo", tolerance=1e-06)
def test_sppo_soft_at_a_sure_win_is_sppo(seed: int) -> Sides:
    numbers = pairs(seed)
    return values("sppo_soft", replaced(numbers, chosen_score=numbers["rejected_score"] + 100)), values("sppo", numbers)


def test_sppo_list_by_hand() -> None:
    # scores 0.5, 1, 0, each against all three, itself included; best has rho -2, worst 0.5
    best = (sigmoid(0.5) + 0.5 + sigmoid(1.0)) / 3
    worst = (sigmoid(-0.5) + sigmoid(-1.0) + 0.5) / 3
    expected = ((-2 - (best - 0.5) / 0.1) ** 2 + (0.5 - (worst - 0.5) / 0.1) ** 2) / 2
    assert evaluate(load("sppo_list", beta=0.1), **LIST) == close([expected])


def test_sppo_list_at_reference() -> None:
    same = LIST | {"completions": LIST["ref_completions"]}
    excess = (sigmoid(0.5) + 0.5 + sigmoid(1.0)) / 3 - 0.5  # of the best; that of the worst is its negative
    assert evaluate(load("sppo_list", beta=0.1), **same) == close([(excess / 0.1) ** 2])


@identity("sppo_list on two completions = sppo_soft(beta doubled) / 2", tolerance=1e-6)
def test_sppo_list_on_two_completions_is_half_of_sppo_soft(seed: int) -> Sides:
    numbers = pairs(seed)
    scores = torch.stack([numbers["chosen_score"], numbers["rejected_score"]], -1)
    two = as_list(numbers) | {"scores": scores}
    return values("sppo_list", two, beta=0.01), values("sppo_soft", numbers, beta=0.02) / 2
