"""Proofs of `dpo_shift`."""

from __future__ import annotations

from tests.losses.hand import LOG2, close, on_pair, softplus
from tests.losses.identities import Sides, identity, pairs, values
from tests.losses.step_0 import at_reference

NOT_TESTED = {
    "dpo_shift parity": "not in TRL",
}


def test_dpo_shift_by_hand() -> None:
    assert on_pair("dpo_shift", beta=0.5, lam=0.75) == close(softplus(-0.5 * (1 + 0.75 * 2)))


def test_dpo_shift_at_reference() -> None:
    assert at_reference("dpo_shift") == close(LOG2)


@identity("dpo_shift(lam=1.0, beta=0.3) = dpo(beta=0.3)")
def test_dpo_shift_is_dpo(seed: int) -> Sides:
    return values("dpo_shift", pairs(seed), lam=1.0, beta=0.3), values("dpo", pairs(seed), beta=0.3)
