"""Proofs of `plackett_luce`."""

from __future__ import annotations

import math

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import LIST, close
from tests.losses.identities import Sides, as_list, identity, pairs, values
from tests.losses.step_0 import at_reference

NOT_TESTED = {
    "plackett_luce parity": "not in TRL",
}


def test_plackett_luce_by_hand() -> None:
    best, middle, worst = (math.exp(0.5 * rho) for rho in (-2, 1, 0.5))
    expected = -math.log(best / (best + middle + worst)) - math.log(middle / (middle + worst))
    assert evaluate(load("plackett_luce", beta=0.5), **LIST) == close([expected])


def test_plackett_luce_at_reference() -> None:
    assert at_reference("plackett_luce") == close(math.log(24))  # log K! at K = 4


@identity("plackett_luce on two completions = dpo")
def test_plackett_luce_on_two_completions_is_dpo(seed: int) -> Sides:
    return values("plackett_luce", as_list(pairs(seed))), values("dpo", pairs(seed))
