"""Proofs of `alpha_po`."""

from __future__ import annotations

import math

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from prefopt.testing.samples import Named
from tests.losses.hand import close, on_pair, softplus
from tests.losses.identities import Sides, identity, output, pairs, values
from tests.losses.trl_peer import mean_logps, ours, trl_cpo


def test_alpha_po_by_hand() -> None:
    chosen, rejected = (1 - math.exp(0.25)) / 0.25, (1 - math.exp(0.25 * 1.375)) / 0.25
    expected = softplus(-2 * (chosen - rejected - 0.1))
    assert on_pair("alpha_po", beta=2.0, alpha=0.25, gamma_beta_ratio=0.1) == close(expected)


def test_alpha_po_margin_is_a_ratio() -> None:
    """At the defaults, log-probs per token of -0.8 and -1: an absolute margin would give 0.4643."""
    one_token = {"chosen_num_tokens": [1], "rejected_num_tokens": [1]}
    value = evaluate(load("alpha_po"), chosen=[-0.8], rejected=[-1.0], **one_token)[0]
    assert value == close(softplus(-2.5 * (4 * (math.exp(0.25) - math.exp(0.2)) - 0.1)))
    assert value == close(0.5226, abs=5e-5)
    absolute = evaluate(load("alpha_po", gamma_beta_ratio=0.1 / 2.5), chosen=[-0.8], rejected=[-1.0], **one_token)
    assert absolute == close([0.4643], abs=5e-5)


@identity("alpha_po(alpha=0.0, beta=2.0, gamma_beta_ratio=0.5) = simpo")
def test_alpha_po_is_simpo(seed: int) -> Sides:
    return values("alpha_po", pairs(seed), alpha=0.0, beta=2.0, gamma_beta_ratio=0.5), values("simpo", pairs(seed))


@identity("alpha_po(alpha to 0) = simpo", tolerance=1e-06)
def test_alpha_po_alpha_to_0_is_simpo(seed: int) -> Sides:
    return values("alpha_po", pairs(seed), alpha=1e-8, beta=2.0, gamma_beta_ratio=0.5), values("simpo", pairs(seed))


@identity("difference of alpha_po's rewards at alpha=-1 = -simper")
def test_alpha_po_rewards_at_alpha_minus_1_are_simper(seed: int) -> Sides:
    power = output("alpha_po", pairs(seed), alpha=-1.0, beta=1.0)
    assert power.chosen_reward is not None
    assert power.rejected_reward is not None
    return power.rejected_reward - power.chosen_reward, values("simper", pairs(seed))


def test_alpha_po_parity(batch: Named) -> None:
    theirs = trl_cpo(*mean_logps(batch), "simpo", beta=2.5, alpha=0.25, simpo_gamma=0.25)
    assert ours("alpha_po", batch) == close(theirs, abs=1e-6)
