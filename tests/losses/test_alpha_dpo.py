"""Proofs of `alpha_dpo`."""

from __future__ import annotations

import math

import torch

from prefopt.losses._running import update_moments, z_score
from prefopt.losses.registry import load
from prefopt.testing import evaluate
from prefopt.testing.numbers import build, call, to_tensor
from tests.losses.hand import PAIR, THREE, close, softplus
from tests.losses.identities import Sides, identity, output, pairs, values

NOT_TESTED = {
    "alpha_dpo parity": "not in TRL",
    "alpha_dpo at_reference": "depends on the reference's margin",
}


def test_alpha_dpo_by_hand() -> None:
    d = [0.375, 0.5, 0.0]  # -1 + 1.375, -0.5 + 1, -1 + 1
    moved = [d[0] - (-1.5 + 0.875), d[1] - (-0.4 + 1.25), d[2] - (-1.0 + 0.75)]
    mean = sum(moved) / 3
    deviation = math.sqrt(sum((m - mean) ** 2 for m in moved) / 2)
    z = [(m - mean) / deviation for m in moved]  # the first batch has its own mean and deviation
    expected = [softplus(-2 * (a - 0.5 - 0.2 * b)) for a, b in zip(d, z, strict=True)]
    assert evaluate(load("alpha_dpo", beta=2.0, gamma_beta_ratio=0.5, alpha=0.2), **THREE) == close(expected)


def test_alpha_dpo_averages_are_corrected_for_their_start() -> None:
    """After two batches, weights 0.9 and 1 over 1.9; 0.9 and 0.1 only in the long run."""
    loss = load("alpha_dpo")
    state = loss.initial_state()  # type: ignore[attr-defined]
    for moved, mean, deviation in ((1.0, 1.0, 2**0.5), (2.0, 2.9 / 1.9, 2.9 / 1.9 * 2**0.5)):
        state = update_moments(state, torch.tensor([0.0, 2 * moved]), decay=0.9)
        assert (state["mean"].item(), state["deviation"].item()) == close((mean, deviation))


def test_alpha_dpo_target_in_the_first_batch() -> None:
    """At z = 0.45 it is 0.6 + 0.2 * 0.45 = 0.69. Averages that begin at 0 have a tenth of their weight after one batch,
    and a target of 1.50; the authors', updated in each of 16 forwards, have 81 %, and 0.71."""
    other = math.sqrt((2 - 1.5 * 0.45**2) / 2)  # the three have mean 0 and deviation 1
    moved = torch.tensor([0.45, -0.225 + other, -0.225 - other], dtype=torch.float64)
    still, one = torch.full_like(moved, -3.0), torch.ones(3, dtype=torch.int64)
    numbers = {"chosen": still + moved, "ref_chosen": still, "rejected": still, "ref_rejected": still}
    numbers |= {"chosen_num_tokens": one, "rejected_num_tokens": one}
    assert output("alpha_dpo", numbers).metrics["target_margin"][0].item() == close(0.69)
    of_16 = 1 - 0.9**16
    assert of_16 == close(0.81, abs=5e-3)
    for weight, target in ((0.1, 1.50), (of_16, 0.71)):
        from_0 = {"mean": weight * moved.mean(), "deviation": weight * moved.std()}
        assert 0.6 + 0.2 * z_score(moved, from_0)[0].item() == close(target, abs=5e-3)


def test_alpha_dpo_rewards_are_the_authors() -> None:
    """beta (l - alpha (l - l_ref)) at l -1 and -1.375, l_ref -1.5 and -0.875."""
    loss = load("alpha_dpo", beta=2.0, alpha=0.2)
    rewards = call(loss, build(loss.needs, {name: to_tensor(name, value) for name, value in PAIR.items()}))
    assert rewards.chosen_reward is not None
    assert rewards.rejected_reward is not None
    assert rewards.chosen_reward.item() == close(2 * (-1 - 0.2 * 0.5))
    assert rewards.rejected_reward.item() == close(2 * (-1.375 - 0.2 * -0.5))


def test_alpha_dpo_has_no_z_score_in_a_batch_without_deviation() -> None:
    """At step 0 every margin is the same: 0/0 must be 0, and rounding of 1e-6 nats must not become a z-score of 1."""
    same = THREE | {"chosen": THREE["ref_chosen"], "rejected": THREE["ref_rejected"]}
    plain = evaluate(load("simpo", beta=2.5, gamma_beta_ratio=0.6), **same)
    assert evaluate(load("alpha_dpo", alpha=10.0), **same) == close(plain)
    rounded = same | {"chosen": [value + error for value, error in zip(same["chosen"], (1e-6, 0, -1e-6), strict=True)]}
    assert evaluate(load("alpha_dpo", alpha=10.0), **rounded) == close(plain, abs=1e-5)


@identity("alpha_dpo(alpha=0.0) = simpo(beta=2.5, gamma_beta_ratio=0.6)")
def test_alpha_dpo_is_simpo(seed: int) -> Sides:
    return values("alpha_dpo", pairs(seed), alpha=0.0), values("simpo", pairs(seed), beta=2.5, gamma_beta_ratio=0.6)
