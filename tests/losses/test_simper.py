"""Proofs of `simper`."""

from __future__ import annotations

import math

from tests.losses.hand import close, on_pair

NOT_TESTED = {
    "simper parity": "not in TRL",
}


def test_simper_by_hand() -> None:
    assert on_pair("simper") == close(math.exp(-1.375) - math.exp(-1))
