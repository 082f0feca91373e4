"""Proofs of `dr_dpo`."""

from __future__ import annotations

import math

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import LOG2, THREE, close, softplus
from tests.losses.identities import Sides, identity, pairs, values
from tests.losses.step_0 import at_reference

NOT_TESTED = {
    "dr_dpo parity": "not in TRL",
}


def test_dr_dpo_by_hand() -> None:
    losses = [softplus(-0.5 * delta) for delta in (3, -1, 0.5)]
    soft = -2 * math.log(sum(math.exp(-value / 2) for value in losses) / 3)
    assert evaluate(load("dr_dpo", beta=0.5, beta_prime=2.0), **THREE) == close([soft] * 3)


def test_dr_dpo_at_reference() -> None:
    assert at_reference("dr_dpo") == close(LOG2)


@identity("dr_dpo(beta_prime to infinity) = batch mean of dpo, error Var(l) / (2 beta_prime)", tolerance=1e-08)
def test_dr_dpo_tends_to_the_mean_of_dpo(seed: int) -> Sides:
    plain = values("dpo", pairs(seed))
    expected = plain.mean() - plain.var(correction=0) / (2 * 1e3)
    return values("dr_dpo", pairs(seed), beta_prime=1e3), expected.expand_as(plain)
