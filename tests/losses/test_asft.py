"""Proofs of `asft`."""

from __future__ import annotations

import math

from tests.losses.hand import close, on_pair, softplus
from tests.losses.identities import Sides, identity, pairs, values

NOT_TESTED = {
    "asft parity": "not in TRL",
}


def odds(mean: float) -> float:
    return math.log(math.exp(mean) / (1 - math.exp(mean)))


def test_asft_by_hand() -> None:
    expected = 1.0 + 0.3 * (softplus(-2 * odds(-1.0)) + softplus(2 * odds(-1.375)))
    assert on_pair("asft", beta=2.0, lam=0.3) == close(expected)


@identity("asft(lam=0) = sft")
def test_asft_without_odds_is_sft(seed: int) -> Sides:
    numbers = pairs(seed)
    chosen = {name: numbers[name] for name in ("chosen", "chosen_num_tokens")}
    return values("asft", numbers, lam=0.0), values("sft", chosen)
