"""Proofs of `npo`."""

from __future__ import annotations

from tests.losses.hand import LOG2, close, on_pair, softplus
from tests.losses.step_0 import at_reference, sides_at_step_0

NOT_TESTED = {
    "npo parity": "not in TRL",
}


def test_npo_by_hand() -> None:
    assert on_pair("npo", beta=0.5) == close(4 * softplus(-1.0))


def test_npo_at_reference() -> None:
    assert at_reference("npo", beta=0.1) == close(20 * LOG2)


def test_npo_leaves_the_chosen_side_alone_at_step_0() -> None:
    assert sides_at_step_0("npo", beta=0.5) == close((0.0, 2.0))  # (2/beta) * sigmoid(0), per unit of beta
