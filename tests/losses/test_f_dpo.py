"""Proofs of `f_dpo`."""

from __future__ import annotations

import math

import pytest

from prefopt.losses.f_dpo import Divergence
from prefopt.testing.samples import Named
from tests.losses.hand import LOG2, close, on_pair, softplus
from tests.losses.identities import Sides, identity, pairs, values
from tests.losses.optima import recovers_the_reward
from tests.losses.step_0 import at_reference
from tests.losses.trl_peer import ours, trl_dpo


@pytest.mark.parametrize(
    ("divergence", "slope_w", "slope_l"),
    [
        (Divergence.REVERSE_KL, 1.0, -2.0),
        (Divergence.FORWARD_KL, -math.exp(-1), -math.exp(2)),
        (
            Divergence.JENSEN_SHANNON,
            math.log(2 * math.e / (1 + math.e)),
            math.log(2 * math.exp(-2) / (1 + math.exp(-2))),
        ),
        (Divergence.ALPHA, (1 - math.exp(-0.25)) / 0.25, (1 - math.exp(0.5)) / 0.25),
    ],
)
def test_f_dpo_by_hand(divergence: Divergence, slope_w: float, slope_l: float) -> None:
    value = on_pair("f_dpo", beta=0.5, divergence=divergence, alpha=0.25)
    assert value == close(softplus(-0.5 * (slope_w - slope_l)))


def test_f_dpo_at_reference() -> None:
    assert at_reference("f_dpo") == close(LOG2)


@identity("f_dpo(divergence=reverse_kl) = dpo")
def test_f_dpo_reverse_kl_is_dpo(seed: int) -> Sides:
    return values("f_dpo", pairs(seed), divergence=Divergence.REVERSE_KL), values("dpo", pairs(seed))


@identity("f_dpo(alpha, alpha=1) = f_dpo(forward_kl)")
def test_f_dpo_alpha_1_is_forward_kl(seed: int) -> Sides:
    return (
        values("f_dpo", pairs(seed), divergence=Divergence.ALPHA, alpha=1.0),
        values("f_dpo", pairs(seed), divergence=Divergence.FORWARD_KL),
    )


@identity("f_dpo(alpha, alpha to 0) = dpo", tolerance=1e-06)
def test_f_dpo_alpha_to_0_is_dpo(seed: int) -> Sides:
    # the error is beta alpha rho^2 / 2, here below 1e-7
    return values("f_dpo", pairs(seed), divergence=Divergence.ALPHA, alpha=1e-9), values("dpo", pairs(seed))


def test_f_dpo_parity_forward_kl(batch: Named) -> None:
    theirs = trl_dpo(batch, "sigmoid", f_divergence_type="forward_kl")
    assert ours("f_dpo", batch, divergence=Divergence.FORWARD_KL) == close(theirs, abs=1e-6)


def test_f_dpo_parity_jensen_shannon(batch: Named) -> None:
    theirs = trl_dpo(batch, "sigmoid", f_divergence_type="js_divergence")
    assert ours("f_dpo", batch, divergence=Divergence.JENSEN_SHANNON) == close(theirs, abs=1e-6)


def test_f_dpo_parity_alpha(batch: Named) -> None:
    theirs = trl_dpo(batch, "sigmoid", f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.3)
    assert ours("f_dpo", batch, divergence=Divergence.ALPHA, alpha=0.7) == close(theirs, abs=1e-6)


def test_f_dpo_alpha_recovers_the_reward_in_its_own_way() -> None:
    assert recovers_the_reward(
        "f_dpo", {"beta": 1.0, "divergence": Divergence.ALPHA, "alpha": 0.5}, lambda u: 2 * (1 - u**-0.5)
    )


def test_f_dpo_forward_kl_recovers_the_reward_in_its_own_way() -> None:
    assert recovers_the_reward("f_dpo", {"beta": 1.0, "divergence": Divergence.FORWARD_KL}, lambda u: 1 - 1 / u)
