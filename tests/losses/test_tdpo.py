"""Proofs of `tdpo1`, `tdpo2`."""

from __future__ import annotations

import pytest
import torch

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from prefopt.testing.numbers import build, call, to_tensor
from tests.losses.hand import KL, LOG2, PAIR, close, softplus
from tests.losses.identities import Sides, identity, output, pairs, uniform_statistic, values
from tests.losses.step_0 import at_reference

NOT_TESTED = {
    "tdpo1 parity": "not in TRL",
    "tdpo2 parity": "not in TRL",
}


def test_tdpo1_by_hand() -> None:
    assert evaluate(load("tdpo1", beta=0.5), **PAIR, **KL) == close([softplus(-0.5 * (3 - (1.5 - 0.75)))])


def test_tdpo1_at_reference() -> None:
    assert at_reference("tdpo1") == close(LOG2)


@identity("tdpo1 = tdpo2(alpha=1.0)")
def test_tdpo1_is_tdpo2(seed: int) -> Sides:
    return values("tdpo1", pairs(seed)), values("tdpo2", pairs(seed), alpha=1.0)


@identity("tdpo1 where the KL is 0 = dpo")
def test_tdpo1_without_kl_is_dpo(seed: int) -> Sides:
    return values("tdpo1", uniform_statistic(pairs(seed), "kl", 0.0)), values("dpo", pairs(seed))


def test_tdpo2_by_hand() -> None:
    value = evaluate(load("tdpo2", beta=0.5, alpha=0.4), **PAIR, **KL)
    assert value == close([softplus(-0.5 * (3 - 0.4 * 0.75))])


@pytest.mark.parametrize("name", ["tdpo1", "tdpo2"])
def test_tdpo_rewards_contain_the_kl(name: str) -> None:
    """beta (rho + K) at rho 1 and 0, K 0.5 and 3; beta rho alone would be 0.10 and 0."""
    numbers = {"chosen": [-1.0], "ref_chosen": [-2.0], "rejected": [-1.0], "ref_rejected": [-1.0]}
    numbers |= {"chosen_num_tokens": [1], "rejected_num_tokens": [1]}
    kl = {"chosen_kl": torch.tensor([[0.5]]), "rejected_kl": torch.tensor([[3.0]])}
    rewards = output(name, {key: to_tensor(key, value) for key, value in (numbers | kl).items()}, beta=0.1)
    assert rewards.chosen_reward is not None
    assert rewards.rejected_reward is not None
    assert (rewards.chosen_reward.item(), rewards.rejected_reward.item()) == close((0.15, 0.30))


def test_tdpo2_holds_the_chosen_kl_still() -> None:
    numbers = {name: to_tensor(name, value) for name, value in (PAIR | KL).items()}
    gradients = {}
    for name in ("tdpo1", "tdpo2"):
        kl = numbers["chosen_kl"].clone().requires_grad_()
        loss = load(name)
        sums = numbers["chosen"].clone().requires_grad_()
        call(loss, build(loss.needs, numbers | {"chosen_kl": kl, "chosen": sums})).loss.sum().backward()
        gradients[name] = kl.grad
    assert gradients["tdpo2"] is None
    assert gradients["tdpo1"] is not None


def test_tdpo2_at_reference() -> None:
    assert at_reference("tdpo2") == close(LOG2)


@identity("tdpo2(alpha=0.0) = dpo")
def test_tdpo2_is_dpo(seed: int) -> Sides:
    return values("tdpo2", pairs(seed), alpha=0.0), values("dpo", pairs(seed))
