"""Proofs of `hypo`."""

from __future__ import annotations

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import PAIR, close, on_pair, softplus
from tests.losses.identities import Sides, identity, pairs, replaced, values

NOT_TESTED = {
    "hypo parity": "not in TRL",
    "hypo at_reference": "depends on the reference's margin",
}


def test_hypo_by_hand() -> None:
    assert on_pair("hypo", beta=0.5) == close(softplus(-0.5 * (3.5 - 0.5)))
    opposed = PAIR | {"ref_rejected": [-1.0]}  # d_ref = -2 counts as 0
    assert evaluate(load("hypo", beta=0.5), **opposed)[0] == close(softplus(-0.5 * 3.5))


@identity("hypo where d_ref > 0 = dpo")
def test_hypo_with_an_agreeing_reference_is_dpo(seed: int) -> Sides:
    numbers = pairs(seed)
    agreeing = replaced(numbers, ref_chosen=numbers["ref_rejected"] + 0.5)
    return values("hypo", agreeing), values("dpo", agreeing)


@identity("hypo where d_ref < 0 = cpo(alpha=0)")
def test_hypo_with_an_opposed_reference_is_cpo(seed: int) -> Sides:
    numbers = pairs(seed)
    opposed = replaced(numbers, ref_chosen=numbers["ref_rejected"] - 0.5)
    return values("hypo", opposed), values("cpo", opposed, alpha=0.0)
