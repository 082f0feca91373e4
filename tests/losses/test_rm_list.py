"""Proofs of `rm_list` and `rm_all_pairs`."""

from __future__ import annotations

import math
from typing import Any

import torch

from prefopt.losses.registry import load
from prefopt.plugin import Data
from prefopt.testing import evaluate
from prefopt.testing.samples import random_numbers
from tests.losses.hand import LIST, close, softplus
from tests.losses.identities import Sides, as_list, identity, no_reference, pairs, values

NOT_TESTED = {
    "rm_list parity": "not in TRL",
    "rm_all_pairs parity": "not in TRL",
}
SCORES: dict[str, Any] = {name: LIST[name] for name in ("completions", "num_tokens", "scores")}


def test_rm_list_by_hand() -> None:
    best, middle, worst = (math.exp(score) for score in (-5.0, -2.0, -1.5))
    expected = -math.log(best / (best + middle + worst)) - math.log(middle / (middle + worst))
    assert evaluate(load("rm_list"), **SCORES) == close([expected])


def test_rm_all_pairs_by_hand() -> None:
    """The pairs best over middle, best over worst, middle over worst, and one value for the prompt."""
    expected = (softplus(3.0) + softplus(3.5) + softplus(0.5)) / 3
    assert evaluate(load("rm_all_pairs"), **SCORES) == close([expected])


def test_rm_all_pairs_leaves_ties_out() -> None:
    tied = {**SCORES, "scores": [[1.0, 1.0, 0.0]]}
    assert evaluate(load("rm_all_pairs"), **tied) == close([(softplus(0.5) + softplus(3.5)) / 2])
    assert evaluate(load("rm_all_pairs"), **{**SCORES, "scores": [[1.0, 1.0, 1.0]]}) == [0.0]


@identity("rm_list = plackett_luce(beta=1.0) on scores with a reference of 0")
def test_rm_list_is_plackett_luce(seed: int) -> Sides:
    numbers = random_numbers(Data.LISTS, seed=seed)
    return values("rm_list", numbers), values("plackett_luce", no_reference(numbers), beta=1.0)


@identity("rm_list on two completions = bradley_terry")
def test_rm_list_of_two(seed: int) -> Sides:
    return values("rm_list", as_list(pairs(seed))), values("bradley_terry", pairs(seed))


@identity("rm_all_pairs on two completions = bradley_terry")
def test_rm_all_pairs_of_two(seed: int) -> Sides:
    return values("rm_all_pairs", as_list(pairs(seed))), values("bradley_terry", pairs(seed))


def test_a_prompt_counts_once_however_many_completions_it_has() -> None:
    """Equal scores everywhere: every pair has log 2, and so has the mean of any number of them."""
    for count in (2, 3, 5):
        lists = {"completions": [[0.0] * count], "num_tokens": [[1] * count], "scores": [list(range(count))]}
        assert evaluate(load("rm_all_pairs"), **lists) == close([math.log(2)])
    assert torch.isfinite(torch.tensor(evaluate(load("rm_list"), **lists))).all()
