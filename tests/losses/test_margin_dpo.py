"""Proofs of `margin_dpo`."""

from __future__ import annotations

import math

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import SAME_SIDES, close, on_pair, softplus
from tests.losses.identities import Sides, identity, pairs, values

NOT_TESTED = {
    "margin_dpo parity": "not in TRL",
}


def test_margin_dpo_by_hand() -> None:
    # beta Delta = 1.5, margin 0.75
    assert on_pair("margin_dpo", beta=0.5, scale=2.0) == close(softplus(-(1.5 - 1.5)))


def test_margin_dpo_at_reference() -> None:
    loss = load("margin_dpo", scale=2.0)
    assert evaluate(loss, **SAME_SIDES, margin=[0.5]) == close([math.log(1 + math.e)])


@identity("margin_dpo(scale=0.0) = dpo")
def test_margin_dpo_without_margin_is_dpo(seed: int) -> Sides:
    return values("margin_dpo", pairs(seed), scale=0.0), values("dpo", pairs(seed))
