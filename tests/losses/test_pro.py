"""Proofs of `pro`."""

from __future__ import annotations

import math

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import LIST, close
from tests.losses.identities import Sides, as_list, identity, pairs, values

NOT_TESTED = {
    "pro parity": "not in TRL",
}


def test_pro_by_hand() -> None:
    p = {"best": -1.25, "middle": -1.0, "worst": -1.5}
    first = 1.0 * p["best"]  # g_kk = max(0.5, 1)
    total = math.exp(first) + math.exp(0.5 * p["middle"]) + math.exp(1.0 * p["worst"])
    second = 0.5 * p["middle"]
    rest = math.exp(second) + math.exp(0.5 * p["worst"])
    expected = math.log(total) - first + math.log(rest) - second + 0.05 * 2**2 * 5
    assert evaluate(load("pro", beta=0.05), **LIST) == close([expected])


@identity("pro(beta=0) on two completions a score of 1 apart = simpo(beta=1, gamma_beta_ratio=0)")
def test_pro_on_two_completions_is_simpo(seed: int) -> Sides:
    return (
        values("pro", as_list(pairs(seed)), beta=0.0),
        values("simpo", pairs(seed), beta=1.0, gamma_beta_ratio=0.0),
    )
