"""Where learning from own samples leads: fixed points and identities on worlds that are enumerated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prefopt.losses._rollouts import KL
from prefopt.losses.registry import load
from prefopt.plugin import Logps, PairLogps
from tests.losses.rollouts import expected_gradient, logits_of, world
from tests.worlds.enumerable import EnumerableWorld, log_probs, total_variation

BETA = 0.5


def intransitive(count: int) -> Tensor:
    """(N, N) the probability that text i beats text j, which no reward explains."""
    gaps = torch.randn(count, count, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return torch.sigmoid(2 * (gaps - gaps.T))


def online_gradient(
    name: str, at: EnumerableWorld, policy: Tensor, wins: Tensor, *, drawn: Tensor | None = None, **settings: Any
) -> Tensor:
    """The expected gradient of a loss on pairs, both drawn from `drawn` (the policy itself), labelled by `wins`."""
    drawn = policy if drawn is None else drawn
    logits = logits_of(policy).requires_grad_()
    log_prob = log_probs(logits)
    one, two = torch.cartesian_prod(torch.arange(len(policy)), torch.arange(len(policy))).unbind(-1)

    def side(index: Tensor) -> Logps:
        return Logps(sum=log_prob[index], num_tokens=torch.full_like(index, 3), ref_sum=at.reference[index])

    weight = drawn[one] * drawn[two] * wins[one, two] * 2
    loss = load(name, **settings)(PairLogps(chosen=side(one), rejected=side(two))).loss
    (found,) = torch.autograd.grad((loss * weight).sum(), logits)
    return found


# ---- where the KL stands


def test_kl_in_the_reward_leads_to_the_tilt() -> None:
    at = world()
    found = at.fit(lambda log_prob: (log_prob.exp() * (BETA * (log_prob - at.reference) - at.reward)).sum())
    assert total_variation(found, at.tilted(at.reward / BETA)) < 1e-6
    assert float(expected_gradient("rloo", at, logits_of(found), beta=BETA).abs().max()) < 1e-6


def test_k3_in_the_loss_leads_to_the_kl_the_other_way_round() -> None:
    """Its fixed point is that of reward less KL(reference || policy), a total variation of 0.61 from RLHF's optimum."""
    at = world()
    share = at.reference.exp()
    found = at.fit(lambda log_prob: -(log_prob.exp() @ at.reward) - BETA * (share @ log_prob), iterations=2000)
    assert float(expected_gradient("rloo", at, logits_of(found), beta=BETA, kl=KL.LOSS_K3).abs().max()) < 1e-6
    assert total_variation(found, at.tilted(at.reward / BETA)) == pytest.approx(0.6103, abs=1e-3)


def test_k1_in_the_loss_is_no_kl_at_all() -> None:
    """The mean of its gradient over own samples is 0."""
    at = world()
    logits = at.start.clone().requires_grad_()
    log_prob = log_probs(logits)
    (found,) = torch.autograd.grad((log_prob.detach().exp() * (log_prob - at.reference + 1)).sum(), logits)
    assert float(found.abs().max()) < 1e-12


@pytest.mark.parametrize(("kl", "still"), [(KL.REWARD, True), (KL.LOSS_K3, False)])
def test_where_the_tilt_stops_grpo(kl: KL, still: bool) -> None:
    at = world()
    tilt = logits_of(at.tilted(at.reward / BETA))
    left = float(expected_gradient("grpo", at, tilt, beta=BETA, kl=kl).abs().max())
    assert left < 1e-9 if still else left > 1e-3


def test_advantages_of_grpo_stay_large_close_to_the_tilt() -> None:
    at = world()
    near = logits_of(at.tilted(at.reward / BETA)) + 1e-3 * at.start
    grpo, rloo = (expected_gradient(n, at, near, beta=BETA, kl=KL.REWARD).norm() for n in ("grpo", "rloo"))
    assert float(grpo) > 100 * float(rloo)


# ---- losses on pairs, on pairs of own samples


def test_online_dpo_with_bradley_terry_labels_leads_to_the_tilt() -> None:
    at = world()
    optimum = at.tilted(at.reward / BETA)
    assert float(online_gradient("dpo", at, optimum, at.preference(), beta=BETA).abs().max()) < 1e-12


def test_labels_at_another_temperature_make_another_reward() -> None:
    """Labels at temperature 1/2 say that rewards are twice as large."""
    at = world()
    wins = torch.sigmoid(2 * (at.reward[:, None] - at.reward))
    assert float(online_gradient("dpo", at, at.tilted(2 * at.reward / BETA), wins, beta=BETA).abs().max()) < 1e-12


def test_certain_labels_push_for_ever() -> None:
    """At the tilt for labels that are certain, however far it is pushed, online DPO pushes further."""
    at = world()
    wins = 0.5 * (1 + torch.sign(at.reward[:, None] - at.reward))
    for scale in (1.0, 4.0):
        policy = at.tilted(scale * at.reward / BETA)
        logits = logits_of(policy) - 0.1 * online_gradient("dpo", at, policy, wins, beta=BETA)
        assert float(log_probs(logits).exp() @ at.reward) > float(policy @ at.reward)


def nash(at: EnumerableWorld, tau: float) -> Tensor:
    """The policy that is its own best answer: the Nash equilibrium of the game with KL to the reference."""
    wins, policy = intransitive(len(at.reward)), at.reference.exp()
    for _ in range(400):
        policy = 0.5 * policy + 0.5 * at.tilted(wins @ policy / tau)
    return policy


def test_online_ipo_leads_to_the_nash_equilibrium_and_offline_ipo_does_not() -> None:
    at, tau = world(), 0.2
    wins = intransitive(64)
    equilibrium = nash(at, tau)
    assert float(online_gradient("ipo_sum", at, equilibrium, wins, tau=tau).abs().max()) < 1e-9
    share = at.reference.exp()
    offline = at.tilted(wins @ share / tau)
    assert float(online_gradient("ipo_sum", at, offline, wins, drawn=share, tau=tau).abs().max()) < 1e-9
    assert total_variation(offline, equilibrium) == pytest.approx(0.05, abs=0.005)
