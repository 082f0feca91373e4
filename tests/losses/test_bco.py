"""Proofs of `bco`, `bco_pair`."""

from __future__ import annotations

import torch

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from prefopt.testing.samples import Named
from tests.losses.hand import ITEMS, LOG2, close, on_pair, softplus
from tests.losses.identities import Sides, as_unpaired, identity, paired_sum, pairs, replaced, values
from tests.losses.step_0 import at_reference
from tests.losses.trl_peer import ours, trl_dpo

NOT_TESTED = {
    "bco parity": "not in TRL",
}


def test_bco_by_hand() -> None:
    delta = 0.5 * (1 - 2 + 0.5 - 1) / 4  # the mean reward
    rewards = [0.5, -1.0, 0.25, -0.5]
    expected = [softplus(delta - rewards[0]), softplus(delta - rewards[1])]
    expected += [softplus(rewards[2] - delta), softplus(rewards[3] - delta)]
    assert evaluate(load("bco", beta=0.5), **ITEMS) == close(expected)


def test_bco_delta_is_the_mean_of_all_items_seen() -> None:
    loss = load("bco", beta=1.0)
    seen = {"delta": torch.tensor(2.0, dtype=torch.float64), "count": torch.tensor(3.0, dtype=torch.float64)}
    value = evaluate(loss, completion=[-1.0], ref_completion=[-5.0], desirable=[True], state=seen)
    assert value == close([softplus((3 * 2 + 4) / 4 - 4)])


def test_bco_at_reference_is_the_same_for_both_labels() -> None:
    assert evaluate(load("bco"), **(ITEMS | {"ref_completion": ITEMS["completion"]})) == close([LOG2] * 4)


def test_bco_at_reference() -> None:
    assert at_reference("bco") == close(LOG2)


@identity("bco where the mean reward is 0, both items of a pair = bco_pair")
def test_bco_with_mean_reward_0_is_bco_pair(seed: int) -> Sides:
    numbers = pairs(seed)
    balanced = replaced(numbers, rejected=numbers["ref_rejected"] - (numbers["chosen"] - numbers["ref_chosen"]))
    return paired_sum(values("bco", as_unpaired(balanced))), values("bco_pair", balanced)


def test_bco_pair_by_hand() -> None:
    assert on_pair("bco_pair", beta=0.5) == close(softplus(-0.5) + softplus(-1.0))


def test_bco_pair_at_reference() -> None:
    assert at_reference("bco_pair") == close(2 * LOG2)


def test_bco_pair_parity(batch: Named) -> None:
    theirs = trl_dpo(batch, "bco_pair")
    assert ours("bco_pair", batch) == close(theirs, abs=1e-6)
