"""Proofs of `cpo`, `cpo_simpo`."""

from __future__ import annotations

from prefopt.testing.samples import Named
from tests.losses.hand import close, on_pair, softplus
from tests.losses.identities import Sides, identity, pairs, replaced, values
from tests.losses.optima import SMALL, distance
from tests.losses.trl_peer import mean_logps, ours, trl_cpo


def test_cpo_by_hand() -> None:
    assert on_pair("cpo", beta=0.5, alpha=0.3) == close(softplus(-1.75) + 0.3 * 1.0)


@identity("cpo(alpha=0) where the reference likes both sides equally = dpo")
def test_cpo_with_a_fair_reference_is_dpo(seed: int) -> Sides:
    numbers = pairs(seed)
    fair = replaced(numbers, ref_chosen=numbers["ref_rejected"])
    return values("cpo", fair, alpha=0.0), values("dpo", fair)


def test_cpo_parity(batch: Named) -> None:
    contrast = trl_cpo(batch["chosen"], batch["rejected"], "sigmoid")
    likelihood = float(-mean_logps(batch)[0].mean())
    assert ours("cpo", batch, alpha=0.5) == close(contrast + 0.5 * likelihood, abs=1e-6)


def test_cpo_without_its_likelihood_reaches_the_tilted_uniform() -> None:
    assert distance("cpo", {"beta": 1.0, "alpha": 0.0}, SMALL.reward - SMALL.reference, world=SMALL) < 1e-4


def test_cpo_simpo_by_hand() -> None:
    value = on_pair("cpo_simpo", beta=4.0, gamma_beta_ratio=0.5, alpha=0.3)
    assert value == close(softplus(-4 * (0.375 - 0.5)) + 0.3 * 1.0)


@identity("cpo_simpo(alpha=0.0, beta=2.0, gamma_beta_ratio=0.5) = simpo")
def test_cpo_simpo_is_simpo(seed: int) -> Sides:
    return values("cpo_simpo", pairs(seed), alpha=0.0, beta=2.0, gamma_beta_ratio=0.5), values("simpo", pairs(seed))


def test_cpo_simpo_parity(batch: Named) -> None:
    """Their gamma is absolute: gamma_beta_ratio * beta."""
    likelihood = float(-mean_logps(batch)[0].mean())
    theirs = trl_cpo(*mean_logps(batch), "simpo", beta=10.0, simpo_gamma=5.4) + 0.05 * likelihood
    assert ours("cpo_simpo", batch) == close(theirs, abs=1e-6)
