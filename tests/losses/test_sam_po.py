"""Proofs of `sam_po`."""

from __future__ import annotations

import math

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import LOG2, TOKENS, close, softplus
from tests.losses.identities import Sides, identity, pairs, same_length, values
from tests.losses.step_0 import at_reference

NOT_TESTED = {
    "sam_po parity": "not in TRL",
}


def test_sam_po_by_hand() -> None:
    """Two of the four rejected tokens: the value is one of the six that are possible, and each comes up over ids."""
    ratios = [-1.0, -0.5, 0.0, -0.5]
    possible = {round(softplus(-0.5 * (1.0 - ratios[i] - ratios[j])), 9) for i in range(4) for j in range(i)}
    found = {round(evaluate(load("sam_po", beta=0.5), **TOKENS, ids=[i])[0], 9) for i in range(60)}
    assert found == possible


def test_sam_po_draws_once_for_policy_and_reference() -> None:
    same = TOKENS | {"ref_chosen_token": TOKENS["chosen_token"], "ref_rejected_token": TOKENS["rejected_token"]}
    assert evaluate(load("sam_po"), **same, ids=[5]) == close([math.log(2)])


def test_sam_po_at_reference() -> None:
    assert at_reference("sam_po") == close(LOG2)


@identity("sam_po at equal lengths = dpo")
def test_sam_po_at_equal_lengths_is_dpo(seed: int) -> Sides:
    numbers = same_length(pairs(seed), 6)
    return values("sam_po", numbers), values("dpo", numbers)
