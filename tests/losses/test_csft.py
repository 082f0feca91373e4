"""Proofs of `csft`."""

from __future__ import annotations

import pytest

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import ITEMS, close
from tests.losses.identities import Sides, as_unpaired, identity, pairs, values

NOT_TESTED = {
    "csft parity": "not in TRL",
}


def test_csft_by_hand() -> None:
    assert evaluate(load("csft"), **ITEMS) == close([1.0, 1.0, 1.0, 1.0])


def test_csft_texts_must_differ() -> None:
    with pytest.raises(ValueError, match="bad"):
        load("csft", good="same", bad="same")


@identity("csft = sft of every completion")
def test_csft_is_sft_of_every_completion(seed: int) -> Sides:
    numbers = as_unpaired(pairs(seed))
    demonstrations = {"chosen": numbers["completion"], "chosen_num_tokens": numbers["num_tokens"]}
    return values("csft", numbers), values("sft", demonstrations)
