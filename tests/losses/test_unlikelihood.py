"""Proofs of `unlikelihood`."""

from __future__ import annotations

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import close, on_pair
from tests.losses.identities import Sides, identity, pairs, values

NOT_TESTED = {
    "unlikelihood parity": "not in TRL",
    "unlikelihood optimum": "unbounded below",
}


def test_unlikelihood_by_hand() -> None:
    assert on_pair("unlikelihood", alpha=0.2) == close(2.0 + 0.2 * -5.5)


def test_unlikelihood_is_unbounded_below() -> None:
    assert evaluate(load("unlikelihood"), chosen=[0.0], rejected=[-1e6])[0] == close(-1e5)


@identity("unlikelihood(alpha=0) = n sft")
def test_unlikelihood_of_the_chosen_side_is_sft(seed: int) -> Sides:
    numbers = pairs(seed)
    demonstrations = {name: numbers[name] for name in ("chosen", "chosen_num_tokens")}
    return values("unlikelihood", numbers, alpha=0.0), values("sft", demonstrations) * numbers["chosen_num_tokens"]
