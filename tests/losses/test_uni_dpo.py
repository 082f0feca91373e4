"""Proofs of `uni_dpo`."""

from __future__ import annotations

import math

import pytest

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import PAIR, close, sigmoid, softplus
from tests.losses.identities import Sides, identity, pairs, values

NOT_TESTED = {
    "uni_dpo parity": "not in TRL",
}
SETTINGS = {"beta": 2.0, "eta": 0.8, "tau": 0.5, "gamma": 2.0, "lam": 0.1}


@pytest.mark.parametrize(("chosen", "score", "trained"), [(-2.0, 1.0, False), (-4.0, 1.0, True), (-4.0, 2.0, False)])
def test_uni_dpo_by_hand(chosen: float, score: float, trained: bool) -> None:
    """SFT where the chosen side is less likely than under the reference (-3) and its score of 1.5 is good enough."""
    d, d_ref = chosen / 2 + 5.5 / 4, -3 / 2 + 3.5 / 4
    quality, progress = sigmoid(0.8 * 1.25), (1 - sigmoid(2 * d - 0.5)) ** 2
    expected = quality * progress * softplus(-2 * (d - d_ref)) + 0.1 * trained * -chosen / 2
    found = evaluate(load("uni_dpo", **SETTINGS, good_score=score), **PAIR | {"chosen": [chosen]})
    assert found == close([expected])


def test_uni_dpo_at_reference() -> None:
    same = PAIR | {"chosen": [-3.0], "rejected": [-3.5]}
    expected = sigmoid(0.8 * 1.25) * (1 - sigmoid(2 * (-1.5 + 0.875) - 0.5)) ** 2 * math.log(2)
    assert evaluate(load("uni_dpo", **SETTINGS, good_score=0.0), **same) == close([expected])


@identity("uni_dpo(eta=0, gamma=0, lam=0, beta=5.0) = dpo_norm / 2")
def test_uni_dpo_without_weights_is_dpo_norm(seed: int) -> Sides:
    off = {"eta": 0.0, "gamma": 0.0, "lam": 0.0, "beta": 5.0, "good_score": 0.0}
    return values("uni_dpo", pairs(seed), **off), values("dpo_norm", pairs(seed)) / 2
