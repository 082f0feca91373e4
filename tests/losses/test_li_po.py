"""Proofs of `li_po`."""

from __future__ import annotations

import math

import pytest

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import LIST, close, softplus
from tests.losses.identities import Sides, as_list, identity, pairs, values

NOT_TESTED = {
    "li_po parity": "not in TRL",
    "li_po at_reference": "depends on the scores",
}


def test_li_po_by_hand() -> None:
    # ranks by reward: the middle one 1, the worst one 2, the best one 3
    gain = {"best": 1.0, "middle": math.sqrt(2) - 1, "worst": 0.0}  # 2^s - 1
    discount = {"best": 1 / math.log(4), "middle": 1 / math.log(2), "worst": 1 / math.log(3)}
    reward = {"best": -1.0, "middle": 0.5, "worst": 0.25}
    expected = 0.0
    for i, j in (("best", "middle"), ("best", "worst"), ("middle", "worst")):
        weight = abs(gain[i] - gain[j]) * abs(discount[i] - discount[j])
        expected += weight * softplus(-(reward[i] - reward[j]))
    assert evaluate(load("li_po", beta=0.5), **LIST) == close([expected])


def test_li_po_refuses_scores_outside_its_scale() -> None:
    with pytest.raises(ValueError, match="rescale"):
        evaluate(load("li_po"), **(LIST | {"scores": [[5.0, 1.0, 0.0]]}))


@identity("li_po on two completions scored 1 and 0 = (1/log 2 - 1/log 3) dpo")
def test_li_po_on_two_completions_is_a_multiple_of_dpo(seed: int) -> Sides:
    scale = 1 / math.log(2) - 1 / math.log(3)
    return values("li_po", as_list(pairs(seed)), beta=0.1), scale * values("dpo", pairs(seed))
