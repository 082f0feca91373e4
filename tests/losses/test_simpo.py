"""Proofs of `simpo`."""

from __future__ import annotations

import math

from prefopt.testing.samples import Named
from tests.losses.hand import close, on_pair, softplus
from tests.losses.identities import Sides, identity, pairs, same_length, values
from tests.losses.trl_peer import mean_logps, ours, trl_cpo

NOT_TESTED = {
    "simpo optimum": "its optimum is no tilt of the reference",
}


def test_simpo_by_hand() -> None:
    assert on_pair("simpo", beta=4.0, gamma_beta_ratio=0.5) == close(softplus(-4 * (0.375 - 0.5)))


@identity("simpo(gamma_beta_ratio=0) at n tokens = cpo(beta/n, alpha=0)")
def test_simpo_at_equal_lengths_is_cpo(seed: int) -> Sides:
    numbers = same_length(pairs(seed), 4)
    return values("simpo", numbers, gamma_beta_ratio=0.0), values("cpo", numbers, beta=2.0 / 4, alpha=0.0)


@identity("simpo/beta, beta to infinity = re_po, error at most log 2 / beta", tolerance=math.log(2) / 1e6)
def test_simpo_tends_to_re_po(seed: int) -> Sides:
    sharp = values("simpo", pairs(seed), beta=1e6, gamma_beta_ratio=0.6) / 1e6
    return sharp, values("re_po", pairs(seed))


def test_simpo_parity(batch: Named) -> None:
    """Their gamma is absolute: gamma_beta_ratio * beta."""
    theirs = trl_cpo(*mean_logps(batch), "simpo", beta=2.0, simpo_gamma=1.0)
    assert ours("simpo", batch, beta=2.0, gamma_beta_ratio=0.5) == close(theirs, abs=1e-6)
