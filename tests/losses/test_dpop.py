"""Proofs of `dpop`."""

from __future__ import annotations

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import LOG2, PAIR, close, on_pair, softplus
from tests.losses.identities import Sides, identity, pairs, values
from tests.losses.step_0 import at_reference

NOT_TESTED = {
    "dpop parity": "not in TRL",
}


def test_dpop_by_hand() -> None:
    assert on_pair("dpop", beta=0.5, lam=50.0) == close(softplus(-1.5))  # rho_w = 1 > 0: no penalty
    fallen = PAIR | {"chosen": [-3.25]}  # rho_w = -0.25, Delta = 1.75
    assert evaluate(load("dpop", beta=0.5, lam=4.0), **fallen)[0] == close(softplus(-0.5 * (1.75 - 4 * 0.25)))


def test_dpop_defaults_are_those_of_the_note() -> None:
    """beta 0.3 and lambda 50: a chosen side that fell by 0.25 outweighs a Delta of 1.75."""
    fallen = PAIR | {"chosen": [-3.25]}
    assert evaluate(load("dpop"), **fallen)[0] == close(softplus(-0.3 * (1.75 - 50 * 0.25)))


def test_dpop_at_reference() -> None:
    assert at_reference("dpop") == close(LOG2)


@identity("dpop(lam=0.0, beta=0.3) = dpo(beta=0.3)")
def test_dpop_is_dpo(seed: int) -> Sides:
    return values("dpop", pairs(seed), lam=0.0, beta=0.3), values("dpo", pairs(seed), beta=0.3)
