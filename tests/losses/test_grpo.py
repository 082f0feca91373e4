"""Proofs of `grpo`, `dr_grpo`."""

from __future__ import annotations

import math

import pytest
import torch

from prefopt.losses._rollouts import KL
from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import close
from tests.losses.identities import Sides, identity, values
from tests.losses.rollouts import expected_gradient, gradient, just_drawn, logits_of, true_gradient, world
from tests.losses.step_0 import at_reference
from tests.losses.trl_peer import trl_on_policy

# Two texts of one token; log-ratio to the sampling policy 0.5 and 0.1, to the reference 1 and -0.5.
TWO = {
    "completions_token": [[[-1.0], [-2.0]]],
    "old_completions_token": [[[-1.5], [-2.1]]],
    "ref_completions_token": [[[-2.0], [-1.5]]],
    "num_tokens": [[1, 1]],
    "scores": [[3.0, 1.0]],
}
K3 = [math.exp(-1) + 1 - 1, math.exp(0.5) - 0.5 - 1]


def tensors() -> dict[str, torch.Tensor]:
    return {n: torch.tensor(v, dtype=torch.int64 if n == "num_tokens" else torch.float64) for n, v in TWO.items()}


def test_grpo_by_hand() -> None:
    # A = 1 / sqrt(2), -1 / sqrt(2); the first ratio e^0.5 is clipped to 1.2, the second e^0.1 is not
    gain = 1.2 / math.sqrt(2) - math.exp(0.1) / math.sqrt(2) - 0.04 * sum(K3)
    assert evaluate(load("grpo"), **tensors()) == close([-gain / 2])


def test_grpo_at_reference() -> None:
    assert at_reference("grpo") == close(0.0)


@identity("gradient of grpo(kl=NONE) at K = 2 and |y| = 1 = -1/sqrt(8) for the better sample")
def test_grpo_reads_only_which_of_two_is_better(seed: int) -> Sides:
    numbers = just_drawn(seed, completions=2)
    numbers = {name: value[..., :1] if value.ndim == 3 else value for name, value in numbers.items()}
    numbers["num_tokens"] = torch.ones_like(numbers["num_tokens"])
    found = gradient("grpo", numbers, kl=KL.NONE)
    better = torch.where(numbers["scores"][:, 0] > numbers["scores"][:, 1], 0, 1)
    return found.gather(1, better[:, None]), torch.full((len(found), 1), -1 / math.sqrt(8), dtype=torch.float64)


def test_a_group_of_equal_rewards_teaches_nothing() -> None:
    numbers = just_drawn(0)
    numbers["scores"] = torch.full_like(numbers["scores"], 0.1) * torch.tensor([1.0, 1 + 1e-15, 1.0, 1.0])
    assert float(gradient("grpo", numbers, kl=KL.NONE).abs().max()) == 0.0


def test_kl_in_the_loss_misses_the_optimum_of_rlhf() -> None:
    at = world()
    optimum = logits_of(at.tilted(at.reward / 0.5))
    assert float(expected_gradient("grpo", at, optimum, beta=0.5).abs().max()) > 1e-3


def parity(name: str, seed: int) -> None:
    loss, numbers = load(name, kl=KL.LOSS_K3), just_drawn(seed)
    numbers["completions_token"] = numbers["old_completions_token"] * 1.05
    numbers["completions"] = numbers["completions_token"].sum(-1)
    found = float(values(name, numbers, kl=KL.LOSS_K3).mean())
    assert found == close(trl_on_policy(name, loss, numbers), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_grpo_parity(seed: int) -> None:
    parity("grpo", seed)


@pytest.mark.parametrize("seed", range(3))
def test_dr_grpo_parity(seed: int) -> None:
    parity("dr_grpo", seed)


def test_dr_grpo_by_hand() -> None:
    # R = r - 0.05 rho_old = 2.975, 1.03; A = +-0.9725
    gain = 0.9725 * 1.2 - 0.9725 * math.exp(0.1)
    assert evaluate(load("dr_grpo", length=2), **tensors()) == close([-gain / 2 / 2])


def test_dr_grpo_at_reference() -> None:
    numbers = tensors()
    for name in ("completions_token", "old_completions_token"):
        numbers[name] = numbers["ref_completions_token"]
    assert evaluate(load("dr_grpo", length=2), **numbers) == close([0.0])  # equal lengths


@identity("gradient of dr_grpo(length=1) at the sampling policy = (K - 1)/K of that of rloo")
def test_dr_grpo_is_rloo_but_for_a_factor(seed: int) -> Sides:
    numbers = just_drawn(seed)
    inside = numbers["num_tokens"].double()  # every token carries the same gradient
    return gradient("dr_grpo", numbers, length=1) / inside, 0.75 * gradient("rloo", numbers)


def test_dr_grpo_gives_the_exact_gradient_in_expectation_but_for_the_factor() -> None:
    at = world()
    policy = at.start + torch.randn(at.start.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = expected_gradient("dr_grpo", at, policy, beta=0.3, length=1)
    torch.testing.assert_close(found, 0.5 * true_gradient(at, policy, 0.3), rtol=0, atol=1e-12)
