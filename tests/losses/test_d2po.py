"""Proofs of `d2po`."""

from __future__ import annotations

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import LOG2, TOKENS, close, softplus
from tests.losses.identities import Sides, identity, pairs, values
from tests.losses.step_0 import at_reference

NOT_TESTED = {
    "d2po parity": "not in TRL",
}


def test_d2po_by_hand() -> None:
    # rho_t: 0.25, 0.75 and -1, -0.5, 0, -0.5
    chosen, rejected = 0.25 + 0.5 * 0.75, -1 - 0.5 * 0.5 - 0.125 * 0.5
    assert evaluate(load("d2po", beta=0.5, gamma=0.5), **TOKENS) == close([softplus(-0.5 * (chosen - rejected))])


def test_d2po_at_reference() -> None:
    assert at_reference("d2po") == close(LOG2)


@identity("d2po(gamma=1.0) = dpo")
def test_d2po_without_decay_is_dpo(seed: int) -> Sides:
    return values("d2po", pairs(seed), gamma=1.0), values("dpo", pairs(seed))
