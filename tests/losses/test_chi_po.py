"""Proofs of `chi_po`."""

from __future__ import annotations

import math

import torch

from tests.losses.hand import LOG2, close, on_pair, softplus
from tests.losses.identities import Sides, identity, margin, output, pairs, replaced
from tests.losses.optima import recovers_the_reward
from tests.losses.step_0 import at_reference, sides_at_step_0

NOT_TESTED = {
    "chi_po parity": "not in TRL",
}


def test_chi_po_by_hand() -> None:
    difference = 0.1 * ((math.e + 1) - (math.exp(-2) - 2))  # 0.1 * (phi_w - phi_l) = 0.558
    assert on_pair("chi_po", beta=0.1, r_max=5.0) == close(softplus(-difference))
    assert on_pair("chi_po", beta=0.1, r_max=0.2) == close(softplus(-0.4))  # clipped at 2 r_max


def test_chi_po_at_reference() -> None:
    assert at_reference("chi_po", r_max=2.0) == close(LOG2)


def test_chi_po_rewards_at_reference_are_beta() -> None:
    """u + log u is 1 where u = 1."""
    numbers = pairs(0)
    same = replaced(numbers, chosen=numbers["ref_chosen"], rejected=numbers["ref_rejected"])
    found = output("chi_po", same, r_max=2.0, beta=0.3)
    assert found.chosen_reward is not None
    assert found.rejected_reward is not None
    assert found.chosen_reward.tolist() == found.rejected_reward.tolist() == close([0.3] * len(numbers["ids"]))


def test_chi_po_pulls_twice_as_hard_as_dpo_at_step_0() -> None:
    assert sides_at_step_0("chi_po", r_max=2.0) == close((-1.0, 1.0))  # phi' = 2


@identity("chi_po's margin unclipped = dpo's plus beta (u_w - u_l)")
def test_chi_po_adds_the_ratio_to_the_margin_of_dpo(seed: int) -> Sides:
    chi = output("chi_po", pairs(seed), r_max=1e6, beta=0.1)
    numbers = pairs(seed)
    ratios = [(numbers[side] - numbers[f"ref_{side}"]).exp() for side in ("chosen", "rejected")]
    expected = torch.nn.functional.softplus(-margin(numbers, 0.1) - 0.1 * (ratios[0] - ratios[1]))
    return chi.loss, expected


def test_chi_po_recovers_the_reward_in_its_own_way() -> None:
    assert recovers_the_reward("chi_po", {"beta": 1.0, "r_max": 100.0}, lambda u: u + u.log())
