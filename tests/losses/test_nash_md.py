"""Proofs of `nash_md`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from prefopt.losses.registry import load
from prefopt.plugin import ListLogps, Logps, with_targets
from prefopt.testing import evaluate
from tests.losses.hand import close
from tests.losses.identities import Sides, identity
from tests.losses.rollouts import DRAWN, gradient, just_drawn, logits_of, world
from tests.worlds.enumerable import EnumerableWorld, log_probs, token_log_probs, total_variation

NOT_TESTED = {"nash_md parity": "TRL 1.16 has no Nash-MD; the loss of TRL 1.9 is shown to miss the fixed point"}
BETA, MIX = 0.2, 0.25


def test_nash_md_by_hand() -> None:
    # rho_old = 0.5, -2, 0; A = P - 1/2 - 0.5 rho_old = -0.25, 1.5, -0.5
    expected = -(-0.25 * math.exp(0.5) + 1.5 - 0.5 * math.exp(0.5)) / 3
    assert evaluate(load("nash_md", beta=0.5), **DRAWN) == close([expected])


def test_nash_md_at_reference() -> None:
    same = {name: [[-1.0, -2.0]] for name in ("completions", "old_completions", "ref_completions")}
    assert evaluate(load("nash_md"), **same, num_tokens=[[2, 2]], scores=[[0.75, 0.5]]) == close([-0.125])


@identity(
    "gradient of nash_md(beta=0.5) where the mean of P - beta rho over a prompt is 1/2 = (K - 1)/K of that of "
    "rloo(beta=0.5)"
)
def test_nash_md_is_rloo_on_win_rates(seed: int) -> Sides:
    numbers = just_drawn(seed)
    reward = numbers["scores"] - 0.5 * (numbers["completions"] - numbers["ref_completions"])
    numbers["scores"] = numbers["scores"] + 0.5 - reward.mean(-1, keepdim=True)
    return gradient("nash_md", numbers, beta=0.5), 0.75 * gradient("rloo", numbers, beta=0.5)


# ---- fixed points, on preferences that no reward explains


def intransitive(count: int) -> Tensor:
    """(N, N) the probability that text i beats text j."""
    gaps = torch.randn(count, count, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return torch.sigmoid(2 * (gaps - gaps.T))


def mixture(at: EnumerableWorld, policy: Tensor, mix: float = MIX) -> Tensor:
    """The law of the opponent: the next tokens of policy and reference, mixed token by token."""
    both = torch.lerp(logits_of(policy).log_softmax(-1), at.start.log_softmax(-1), mix)
    return log_probs(both).exp()


def solved(at: EnumerableWorld, answer: Any) -> Tensor:
    """The policy that is its own answer to its opponent, by damped steps."""
    policy = at.reference.exp()
    for _ in range(400):
        policy = 0.5 * policy + 0.5 * answer(intransitive(len(policy)) @ mixture(at, policy), policy)
    return policy


def best_answer(at: EnumerableWorld) -> Any:
    return lambda wins, policy: at.tilted(wins / BETA)


def token_answer(at: EnumerableWorld) -> Any:
    """What TRL's product leads to: the log-ratio of each token fits the mean of P behind it, without the KL there."""

    def answer(wins: Tensor, policy: Tensor) -> Tensor:
        levels, first = [], 0
        for depth in range(3):
            mass = policy.reshape(4 ** (depth + 1), -1)
            behind = (mass * wins.reshape(mass.shape)).sum(-1) / mass.sum(-1)
            levels.append(at.start[first : first + 4**depth].log_softmax(-1) + behind.reshape(-1, 4) / BETA)
            first += 4**depth
        return log_probs(torch.cat(levels)).exp()

    return answer


def ours(at: EnumerableWorld, policy: Tensor) -> Tensor:
    """The expected gradient of the plugin by the logits."""
    logits = logits_of(policy).requires_grad_()
    log_prob = log_probs(logits)
    wins = intransitive(len(policy)) @ mixture(at, policy)
    lists = [Logps(sum=v[:, None], num_tokens=torch.full((64, 1), 3), ref_sum=at.reference[:, None])
             for v in (log_prob, log_prob.detach())]  # fmt: skip
    batch = ListLogps(completions=lists[0], old=lists[1], scores=wins[:, None],
                      mask=torch.ones(64, 1, dtype=torch.bool))  # fmt: skip
    loss = load("nash_md", beta=BETA, mixture_coef=MIX)
    (found,) = torch.autograd.grad((loss(with_targets(loss, batch)).loss * policy).sum(), logits)
    return found


def trl(at: EnumerableWorld, policy: Tensor) -> Tensor:
    """The expected gradient of the loss that TRL had: sum_t beta rho_t log pi_t - (P - 1/2) log pi."""
    logits = logits_of(policy).requires_grad_()
    token = token_log_probs(logits)
    rho = (token - token_log_probs(at.start)).detach()
    wins = intransitive(len(policy)) @ mixture(at, policy)
    loss = BETA * (rho * token).sum(-1) - (wins - 0.5) * token.sum(-1)
    (found,) = torch.autograd.grad((loss * policy).sum(), logits)
    return found


def test_the_fixed_point_is_the_best_answer_to_the_mixture() -> None:
    at = world()
    policy = solved(at, best_answer(at))
    assert total_variation(policy, at.tilted(intransitive(64) @ mixture(at, policy) / BETA)) < 1e-12
    assert float(ours(at, policy).abs().max()) < 1e-12
    assert float(trl(at, policy).abs().max()) > 1e-3


def test_a_product_token_by_token_misses_it() -> None:
    at = world()
    theirs = solved(at, token_answer(at))
    assert float(trl(at, theirs).abs().max()) < 1e-12
    assert total_variation(theirs, solved(at, best_answer(at))) == pytest.approx(0.0102, abs=1e-4)
