"""Proofs of `rloo`."""

from __future__ import annotations

import math

import pytest
import torch

from prefopt.losses._rollouts import KL
from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import close
from tests.losses.identities import Sides, identity, output, values
from tests.losses.rollouts import DRAWN, expected_gradient, gradient, just_drawn, logits_of, true_gradient, world
from tests.losses.step_0 import at_reference
from tests.losses.trl_peer import trl_on_policy


def test_rloo_by_hand() -> None:
    # R = r - 0.5 rho_old = 0.25, 2, 0; A = R less the others' mean = -0.75, 1.875, -1.125
    expected = -(-0.75 * math.exp(0.5) + 1.875 - 1.125 * math.exp(0.5)) / 3
    assert evaluate(load("rloo", beta=0.5), **DRAWN) == close([expected])


def test_rloo_with_kl_in_the_loss_by_hand() -> None:
    # A = r less the others' mean = 0, 0.75, -0.75; k3 = e^-rho + rho - 1 at rho = 1, -2, 0.5
    surrogate = -(0.75 - 0.75 * math.exp(0.5))
    k3 = math.exp(-1) + (math.exp(2) - 3) + (math.exp(-0.5) - 0.5)
    assert evaluate(load("rloo", beta=0.5, kl=KL.LOSS_K3), **DRAWN) == close([(surrogate + 0.5 * k3) / 3])


def test_rloo_at_reference() -> None:
    assert at_reference("rloo") == close(0.0)


@identity("gradient of rloo(beta=0.5) = half the mean gradient of rebel(eta=2.0) over all pairs of the samples")
def test_rloo_is_rebel_on_own_samples(seed: int) -> Sides:
    numbers = just_drawn(seed)
    mean = torch.zeros_like(numbers["completions"])
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    for i, j in pairs:
        sides = numbers["completions"][:, [i, j]].clone().requires_grad_()
        pair = {"chosen": sides[:, 0], "rejected": sides[:, 1]}
        pair |= {"ref_chosen": numbers["ref_completions"][:, i], "ref_rejected": numbers["ref_completions"][:, j]}
        pair |= {"chosen_score": numbers["scores"][:, i], "rejected_score": numbers["scores"][:, j]}
        (found,) = torch.autograd.grad(output("rebel", pair, eta=2.0).loss.sum(), sides)
        mean[:, [i, j]] += found / len(pairs)
    return gradient("rloo", numbers, beta=0.5), mean / 2


def test_a_group_of_one_teaches_nothing() -> None:
    numbers = just_drawn(0)
    numbers["num_tokens"] = torch.where(torch.arange(4) == 0, numbers["num_tokens"], 0)
    assert float(gradient("rloo", numbers).abs().max()) == 0.0


def test_a_constant_added_to_all_rewards_changes_nothing() -> None:
    numbers = just_drawn(0)
    assert torch.allclose(values("rloo", numbers), values("rloo", {**numbers, "scores": numbers["scores"] + 7}))


def test_rloo_gives_the_exact_gradient_in_expectation() -> None:
    at = world()
    policy = at.start + torch.randn(at.start.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = expected_gradient("rloo", at, policy, beta=0.3)
    torch.testing.assert_close(found, true_gradient(at, policy, 0.3), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kl", "still"), [(KL.REWARD, True), (KL.LOSS_K3, False)])
def test_only_kl_in_the_reward_has_the_optimum_of_rlhf(kl: KL, still: bool) -> None:
    at = world()
    optimum = logits_of(at.tilted(at.reward / 0.5))
    left = float(expected_gradient("rloo", at, optimum, beta=0.5, kl=kl).abs().max())
    assert left < 1e-12 if still else left > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_rloo_parity(seed: int) -> None:
    loss, numbers = load("rloo"), just_drawn(seed)
    numbers["completions_token"] = numbers["old_completions_token"] * 1.05
    numbers["completions"] = numbers["completions_token"].sum(-1)
    assert float(values("rloo", numbers).mean()) == close(trl_on_policy("rloo", loss, numbers), abs=1e-9)
