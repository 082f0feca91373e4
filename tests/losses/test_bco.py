"""Proofs of `bco`, `bco_pair`, `bco_pair_zero`."""

from __future__ import annotations

from typing import Any

import torch

from prefopt.losses.bco import Threshold
from prefopt.losses.registry import load
from prefopt.testing import evaluate
from prefopt.testing.samples import Named
from tests.losses.hand import ITEMS, LOG2, PAIR, close, on_pair, softplus
from tests.losses.identities import Sides, as_unpaired, identity, paired_sum, pairs, replaced, values
from tests.losses.step_0 import at_reference
from tests.losses.trl_peer import ours, trl_dpo

NOT_TESTED = {
    "bco parity": "not in TRL",
    "bco_pair parity": "TRL from 0.29 on has `bco_pair_zero` under this name",
}


def test_bco_by_hand() -> None:
    delta = (0.5 * (1 - 2) / 2 + 0.5 * (0.5 - 1) / 2) / 2  # the mean of both labels' mean rewards
    rewards = [0.5, -1.0, 0.25, -0.5]
    expected = [softplus(delta - rewards[0]), softplus(delta - rewards[1])]
    expected += [softplus(rewards[2] - delta), softplus(rewards[3] - delta)]
    assert evaluate(load("bco", beta=0.5), **ITEMS) == close(expected)


def test_bco_threshold_balances_labels() -> None:
    """A reward of 2 against three of -2: delta is 0; over all items it would be -1."""
    rewards = {"completion": [2.0, -2.0, -2.0, -2.0], "ref_completion": [0.0] * 4, "desirable": [True] + [False] * 3}
    balanced = evaluate(load("bco", beta=1.0), **rewards)
    assert balanced == close([softplus(-2)] * 4)
    assert balanced[0] == close(0.127, abs=5e-4)
    pooled = evaluate(load("bco", beta=1.0, threshold=Threshold.POOLED), **rewards)
    assert pooled == close([softplus(-3)] + [softplus(-1)] * 3)
    assert (pooled[0], pooled[1]) == close((0.049, 0.313), abs=5e-4)


def test_bco_delta_goes_over_all_items_seen() -> None:
    item: dict[str, Any] = {"completion": [-1.0], "ref_completion": [-5.0], "desirable": [True]}
    seen = {"means": torch.tensor([1.0, 2.0]).double(), "counts": torch.tensor([5.0, 3.0]).double()}
    desirable = (3 * 2 + 4) / 4
    assert evaluate(load("bco", beta=1.0), **item, state=seen) == close([softplus((1 + desirable) / 2 - 4)])
    pooled = load("bco", beta=1.0, threshold=Threshold.POOLED)
    assert evaluate(pooled, **item, state=seen) == close([softplus((5 * 1 + 4 * desirable) / 9 - 4)])


def test_bco_delta_is_the_mean_of_the_one_label_seen() -> None:
    item: dict[str, Any] = {"completion": [-1.0, -3.0], "ref_completion": [-5.0, -5.0], "desirable": [True, True]}
    assert evaluate(load("bco", beta=1.0), **item) == close([softplus(-1), softplus(1)])


def test_bco_at_reference_is_the_same_for_both_labels() -> None:
    assert evaluate(load("bco"), **(ITEMS | {"ref_completion": ITEMS["completion"]})) == close([LOG2] * 4)


def test_bco_at_reference() -> None:
    assert at_reference("bco") == close(LOG2)


@identity("bco, both items of a pair = bco_pair")
def test_bco_on_both_sides_is_bco_pair(seed: int) -> Sides:
    return paired_sum(values("bco", as_unpaired(pairs(seed)))), values("bco_pair", pairs(seed))


@identity("bco where the mean reward is 0, both items of a pair = bco_pair_zero")
def test_bco_with_mean_reward_0_is_bco_pair_zero(seed: int) -> Sides:
    numbers = pairs(seed)
    balanced = replaced(numbers, rejected=numbers["ref_rejected"] - (numbers["chosen"] - numbers["ref_chosen"]))
    return paired_sum(values("bco", as_unpaired(balanced))), values("bco_pair_zero", balanced)


def test_bco_pair_by_hand() -> None:
    delta = (0.5 - 1.0) / 2  # the mean of the rewards 0.5 and -1
    assert on_pair("bco_pair", beta=0.5) == close(softplus(delta - 0.5) + softplus(-1.0 - delta))
    first = evaluate(load("bco_pair", beta=1.0), chosen=[2.0], rejected=[1.0], ref_chosen=[0.0], ref_rejected=[0.0])
    assert first == close([2 * softplus(-0.5)])  # delta 1.5
    assert first == close([0.948], abs=5e-4)


def test_bco_pair_delta_goes_over_all_pairs_seen() -> None:
    seen = {"delta": torch.tensor(1.0).double(), "count": torch.tensor(4.0).double()}
    delta = (4 * 1 + 0.5 - 1.0) / 6
    value = evaluate(load("bco_pair", beta=0.5), **PAIR, state=seen)
    assert value == close([softplus(delta - 0.5) + softplus(-1.0 - delta)])


def test_bco_pair_zero_by_hand() -> None:
    assert on_pair("bco_pair_zero", beta=0.5) == close(softplus(-0.5) + softplus(-1.0))
    rewards = {"chosen": [2.0], "rejected": [1.0], "ref_chosen": [0.0], "ref_rejected": [0.0]}
    assert evaluate(load("bco_pair_zero", beta=1.0), **rewards) == close([1.440], abs=5e-4)


def test_bco_pair_at_reference() -> None:
    assert at_reference("bco_pair") == close(2 * LOG2)


def test_bco_pair_zero_at_reference() -> None:
    assert at_reference("bco_pair_zero") == close(2 * LOG2)


def test_bco_pair_zero_parity(batch: Named) -> None:
    theirs = trl_dpo(batch, "bco_pair")
    assert ours("bco_pair_zero", batch) == close(theirs, abs=1e-6)
