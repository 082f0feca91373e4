"""Proofs of `ppo`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from prefopt.losses import ppo
from prefopt.losses._rollouts import gae
from prefopt.losses.ppo import CutOff
from prefopt.losses.registry import load
from prefopt.plugin import Data
from prefopt.testing import evaluate
from prefopt.testing.numbers import build, call, whole
from prefopt.testing.samples import at_reference, declared, random_numbers
from tests.losses.hand import close
from tests.losses.identities import Sides, identity
from tests.losses.rollouts import gradient, just_drawn, population_gradient, true_gradient, world
from tests.worlds.enumerable import EnumerableWorld, token_log_probs

NOT_TESTED = {"ppo parity": "TRL 1.16 has no PPO; by hand against the code of the N+ implementation details"}

# Texts of 2 tokens and 1; rho_old (1, -1) and (2); r = 1 and 0.5, beta = 0.5; the second text was cut off.
TWO: dict[str, Any] = {
    "completions_token": torch.tensor([[[-0.9, -2.0], [-1.0, 0.0]]], dtype=torch.float64),
    "old_completions_token": torch.tensor([[[-1.0, -2.0], [-1.0, 0.0]]], dtype=torch.float64),
    "ref_completions_token": torch.tensor([[[-2.0, -1.0], [-3.0, 0.0]]], dtype=torch.float64),
    "num_tokens": torch.tensor([[2, 1]]),
    "scores": torch.tensor([[1.0, 0.5]], dtype=torch.float64),
    "ended": torch.tensor([[True, False]]),
    "old_completions_value": torch.tensor([[[0.5, 0.25], [1.0, 0.0]]], dtype=torch.float64),
    "old_completions_value_after": torch.tensor([[7.0, 3.0]], dtype=torch.float64),
    "completions_value": torch.tensor([[[0.625, 0.25], [2.0, 0.0]]], dtype=torch.float64),
}


def by_hand(end_of_the_second: float) -> float:
    """The loss on `TWO` at lambda = 0.5, by arithmetic."""
    deltas = [-0.5 + 0.25 - 0.5, 0.5 + 1 + 0 - 0.25, -1.0 + end_of_the_second - 1.0]
    advantages = [deltas[0] + 0.5 * deltas[1], deltas[1], deltas[2]]
    mean = sum(advantages) / 3
    deviation = math.sqrt(sum((a - mean) ** 2 for a in advantages) / 3 + 1e-8)
    white = [(a - mean) / deviation for a in advantages]
    policy = -(math.exp(0.1) * white[0] + white[1] + white[2])
    returns = [advantages[0] + 0.5, advantages[1] + 0.25, advantages[2] + 1.0]
    far = max((2.0 - returns[2]) ** 2, (1.2 - returns[2]) ** 2)  # clipped at 1 + 0.2
    squares = (0.625 - returns[0]) ** 2 + (0.25 - returns[1]) ** 2 + far
    return (policy + 0.05 * squares) / 3


def test_ppo_by_hand() -> None:
    """The cut-off text gets the estimate behind its last token, 3, and not its score, 0.5."""
    assert evaluate(load("ppo", beta=0.5, lam=0.5), **TWO) == close([by_hand(3.0)], rel=1e-7)


def test_a_cut_off_text_can_count_as_whole() -> None:
    assert evaluate(load("ppo", beta=0.5, lam=0.5, cut_off=CutOff.SCORE), **TWO) == close([by_hand(0.5)], rel=1e-7)


def test_ppo_at_reference() -> None:
    """Whitened advantages sum to 0 over the rollout; the value term is left."""
    loss: Any = load("ppo", value_coefficient=1e-9)
    batch = whole(loss, build(loss.needs, declared(loss.needs, at_reference(random_numbers(Data.LISTS, seed=3)))))
    assert float(call(loss, batch).loss.mean()) == close(0.0, abs=1e-8)


def test_nothing_is_clipped_at_the_sampling_policy() -> None:
    loss, numbers = load("ppo"), just_drawn(0)
    assert not call(loss, build(loss.needs, declared(loss.needs, numbers))).metrics["clip_ratio"].any()
    numbers["completions_token"] = numbers["completions_token"] * 0.5
    assert call(loss, build(loss.needs, declared(loss.needs, numbers))).metrics["clip_ratio"].any()


def test_a_bad_text_that_rose_is_not_let_off() -> None:
    """The objective is bounded where a good text has risen enough or a bad one fallen, and nowhere else."""
    ratio = torch.tensor([5.0, 5.0, 0.2, 0.2])
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert ppo.surrogate(ratio, advantage, 0.2).tolist() == close([1.2, -5.0, 0.2, -0.8])


@identity(
    "gradient of ppo(lam=1, gamma=1, beta=0, cut_off=SCORE) at values 0 and texts of one length = that of "
    "reinforce_pp(beta=0) but for a factor"
)
def test_ppo_without_values_is_reinforce_pp(seed: int) -> Sides:
    numbers = just_drawn(seed)
    numbers["num_tokens"] = torch.full_like(numbers["num_tokens"], 6)
    for name in ("completions_token", "old_completions_token", "ref_completions_token"):
        numbers[name] = numbers[name].masked_fill(numbers[name] == 0, -1.0)
    for name in ("completions_value", "old_completions_value", "old_completions_value_after"):
        numbers[name] = torch.zeros_like(numbers[name])
    ours = gradient("ppo", numbers, lam=1.0, beta=0.0, cut_off=CutOff.SCORE)
    theirs = gradient("reinforce_pp", numbers, beta=0.0)
    return ours / ours.norm(), theirs / theirs.norm()


# ---- on a world that can be enumerated: what values do


def true_values(at: EnumerableWorld, token: Tensor, reference: Tensor, beta: float) -> Tensor:
    """(N, T) what is still to come of each text, reward less KL, on average under the policy with these log-probs."""
    probability = token.sum(-1).exp()
    rho = token - reference
    found = []
    for step in range(token.shape[-1]):
        to_go = at.reward - beta * rho[:, step:].sum(-1)
        of_prefix = (len(to_go) // 4**step, 4**step)
        weight = probability.reshape(of_prefix[1], of_prefix[0])
        mean = (weight * to_go.reshape(weight.shape)).sum(-1) / weight.sum(-1)
        found.append(mean.repeat_interleave(of_prefix[0]))
    return torch.stack(found, -1)


def policy_gradient(
    at: EnumerableWorld, logits: Tensor, lam: float, *, wrong: float = 0.0, beta: float = 0.3
) -> Tensor:
    """The expected gradient that advantages with values off by `wrong` of themselves (and a shift) give."""
    logits = logits.clone().requires_grad_()
    token, reference = token_log_probs(logits), token_log_probs(at.start)
    fixed = token.detach()
    values = true_values(at, fixed, reference, beta) * (1 - wrong) + wrong
    reward = -beta * (fixed - reference)
    reward[:, -1] += at.reward
    inside = torch.ones_like(fixed, dtype=torch.bool)
    advantage = gae(reward, values, torch.zeros(len(fixed), dtype=torch.float64), inside, gamma=1.0, lam=lam)
    objective = (fixed.sum(-1).exp().unsqueeze(-1) * advantage * token).sum()
    (found,) = torch.autograd.grad(-objective, logits)
    return found


def off(lam: float, wrong: float) -> float:
    """How far the expected gradient is from the true one, relative to its size."""
    at = world()
    policy = at.start + torch.randn(at.start.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    true = true_gradient(at, policy, 0.3)
    return float((policy_gradient(at, policy, lam, wrong=wrong) - true).norm() / true.norm())


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_exact_values_give_the_exact_gradient_at_any_lambda(lam: float) -> None:
    assert off(lam, wrong=0.0) < 1e-10


def test_wrong_values_leave_only_lambda_1_exact() -> None:
    """Values that say the same of every prefix: the bias is 5 % at the default lambda, and all of the gradient at 0."""
    assert off(1.0, wrong=1.0) < 1e-10
    assert off(0.95, wrong=1.0) == pytest.approx(0.0547, abs=1e-4)
    assert off(0.0, wrong=1.0) == pytest.approx(1.0697, abs=1e-4)


def test_a_cut_off_is_not_an_end() -> None:
    """Texts of 3 tokens cut off behind 2: with the estimate of what follows, the gradient of the first two tokens stays
    that of the whole texts; with their own scores, as if they had ended, it does not."""
    at = world()
    token = token_log_probs(at.start)  # the reference's own: no KL
    value = true_values(at, token, token, 0.3)
    heads = torch.arange(0, 64, 4)  # the first text of each prefix of two tokens
    policy = token_log_probs(at.start)[heads, :2]
    inside = torch.ones_like(policy, dtype=torch.bool)

    def advantage(after: Tensor, reward: Tensor) -> Tensor:
        return gae(reward, value[heads, :2], after, inside, gamma=1.0, lam=0.95)

    everywhere = torch.ones_like(token, dtype=torch.bool)
    whole_texts = gae(torch.zeros_like(token), value, at.reward, everywhere, gamma=1.0, lam=0.95)
    weight = token[:, 2].exp().reshape(16, 4)
    expected = (weight.unsqueeze(-1) * whole_texts[:, :2].reshape(16, 4, 2)).sum(1)
    none = torch.zeros_like(policy)
    bootstrapped = advantage(value[heads, 2], none)
    torch.testing.assert_close(bootstrapped, expected, rtol=0, atol=1e-12)
    ended = advantage(torch.zeros(16, dtype=torch.float64), none)
    assert float((ended - expected).abs().max()) > 0.1


def test_a_rollout_of_every_text_gives_the_direction_of_the_true_gradient() -> None:
    """The plugin itself, whitening included."""
    at, uniform = world(), torch.zeros_like(world().start)
    values = true_values(at, token_log_probs(uniform), token_log_probs(at.start), 0.3)
    found, true = population_gradient("ppo", at, values, beta=0.3), true_gradient(at, uniform, 0.3)
    torch.testing.assert_close(found / found.norm(), true / true.norm(), rtol=0, atol=1e-10)
