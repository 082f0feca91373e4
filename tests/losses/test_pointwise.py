"""Proofs of `pointwise` and `pointwise_bce`."""

from __future__ import annotations

from typing import Any

from prefopt.losses.registry import load
from prefopt.plugin import Data
from prefopt.testing import evaluate
from prefopt.testing.samples import random_numbers
from tests.losses.hand import ITEMS, LIST, close, softplus
from tests.losses.identities import Sides, as_unpaired, identity, no_reference, paired_sum, pairs, replaced, values

NOT_TESTED = {
    "pointwise parity": "not in TRL",
    "pointwise_bce parity": "not in TRL",
}
SCORES: dict[str, Any] = {name: LIST[name] for name in ("completions", "num_tokens", "scores")}


def test_pointwise_by_hand() -> None:
    """Scores -2, -5, -1.5 against ratings 0.5, 1, 0."""
    assert evaluate(load("pointwise"), **SCORES) == close([(2.5**2 + 6**2 + 1.5**2) / 3])
    by_hand = (1.75**2 + 5.0**2 + 1.0**2) / 3  # ratings less 1, by 2: -0.25, 0, -0.5
    assert evaluate(load("pointwise", offset=1.0, scale=2.0), **SCORES) == close([by_hand])


def test_pointwise_bce_by_hand() -> None:
    items = {name: ITEMS[name] for name in ("completion", "num_tokens", "desirable")}
    expected = [softplus(2.0), softplus(5.0), softplus(-1.0), softplus(-4.0)]
    assert evaluate(load("pointwise_bce"), **items) == close(expected)


@identity("pointwise(offset=0.5, scale=2.0) = pointwise on ratings less 0.5 divided by 2")
def test_units_of_ratings(seed: int) -> Sides:
    numbers = random_numbers(Data.LISTS, seed=seed)
    changed = replaced(numbers, scores=(numbers["scores"] - 0.5) / 2)
    return values("pointwise", numbers, offset=0.5, scale=2.0), values("pointwise", changed)


@identity("pointwise_bce, both items of a pair = bco_pair_zero(beta=1.0) on scores with a reference of 0")
def test_pointwise_bce_on_pairs(seed: int) -> Sides:
    numbers = no_reference(pairs(seed))
    return paired_sum(values("pointwise_bce", as_unpaired(numbers))), values("bco_pair_zero", numbers, beta=1.0)
