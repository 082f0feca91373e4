"""Proofs of `cal_dpo`."""

from __future__ import annotations

from tests.losses.hand import LOG2, close, on_pair, softplus
from tests.losses.step_0 import at_reference

NOT_TESTED = {
    "cal_dpo parity": "not in TRL",
}


def test_cal_dpo_by_hand() -> None:
    expected = softplus(-3) + ((1 - 5) ** 2 + (-2 + 5) ** 2) / 2  # targets +-1/(2 * 0.1)
    assert on_pair("cal_dpo", beta=0.1) == close(expected)


def test_cal_dpo_at_reference() -> None:
    assert at_reference("cal_dpo", beta=0.1) == close(LOG2 + 25)
