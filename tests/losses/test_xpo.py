"""Proofs of `xpo`."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from prefopt.losses.registry import load
from prefopt.plugin import Logps, PairLogps
from prefopt.testing import evaluate
from tests.losses.hand import PAIR, close
from tests.losses.identities import Sides, identity, pairs, values
from tests.losses.rollouts import logits_of, world
from tests.losses.step_0 import at_reference
from tests.worlds.enumerable import EnumerableWorld, log_probs

NOT_TESTED = {"xpo parity": "TRL 1.16 has no XPO"}


@pytest.mark.parametrize(("opponent", "text"), [(False, -5.5), (True, -2.0)])
def test_xpo_by_hand(opponent: bool, text: float) -> None:
    expected = math.log(1 + math.exp(-0.5 * 3)) + 0.25 * text
    assert evaluate(load("xpo", beta=0.5, alpha=0.25), **PAIR, opponent=[opponent]) == close([expected])


def test_xpo_at_reference() -> None:
    assert at_reference("xpo", alpha=0.0) == close(math.log(2))


@identity("xpo(alpha=0.0) = dpo")
def test_xpo_without_alpha_is_dpo(seed: int) -> Sides:
    return values("xpo", pairs(seed), alpha=0.0), values("dpo", pairs(seed))


def expected_gradient(at: EnumerableWorld, logits: Tensor, alpha: float, beta: float = 0.5) -> Tensor:
    """The gradient by the logits, in expectation over a sample of the policy, one of the reference, and their label."""
    logits = logits.clone().requires_grad_()
    log_prob = log_probs(logits)
    count = len(at.reward)
    own, other = torch.cartesian_prod(torch.arange(count), torch.arange(count)).unbind(-1)
    wins = at.preference()[own, other]
    total = logits.new_zeros(())
    for chosen, rejected, opponent, probability in ((own, other, False, wins), (other, own, True, 1 - wins)):
        sides = [Logps(sum=log_prob[s], num_tokens=torch.ones_like(s), ref_sum=at.reference[s])
                 for s in (chosen, rejected)]  # fmt: skip
        batch = PairLogps(chosen=sides[0], rejected=sides[1], opponent=torch.full_like(own, opponent, dtype=torch.bool))
        weight = (log_prob[own].detach() + at.reference[other]).exp() * probability
        total = total + (load("xpo", beta=beta, alpha=alpha)(batch).loss * weight).sum()
    (found,) = torch.autograd.grad(total, logits)
    return found


def test_without_alpha_the_optimum_is_that_of_rlhf() -> None:
    at = world()
    optimum = logits_of(at.tilted(at.reward / 0.5))
    assert float(expected_gradient(at, optimum, 0.0).abs().max()) < 1e-12


def test_alpha_takes_probability_from_what_the_reference_writes() -> None:
    at = world()
    optimum = logits_of(at.tilted(at.reward / 0.5))
    step = optimum - 0.01 * expected_gradient(at, optimum, 1.0)
    share = at.reference.exp()
    assert float(share @ log_probs(step)) < float(share @ log_probs(optimum)) - 1e-4
