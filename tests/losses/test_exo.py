"""Proofs of `exo`."""

from __future__ import annotations

import math

from prefopt.testing.samples import Named
from tests.losses.hand import close, on_pair, sigmoid
from tests.losses.step_0 import at_reference, turns_back_at
from tests.losses.trl_peer import ours, trl_dpo


def test_exo_by_hand() -> None:
    p = sigmoid(1.5)
    expected = p * math.log(p / 0.9) + (1 - p) * math.log((1 - p) / 0.1)
    assert on_pair("exo", beta=0.5, label_smoothing=0.1) == close(expected)


def test_exo_at_reference() -> None:
    assert at_reference("exo", label_smoothing=0.1) == close(math.log(0.25 / 0.09) / 2)


def test_exo_turns_back_past_its_target() -> None:
    assert turns_back_at(math.log(9), "exo", beta=1.0, label_smoothing=0.1)  # beta Delta = log((1 - e)/e)


def test_exo_parity(batch: Named) -> None:
    theirs = trl_dpo(batch, "exo_pair", label_smoothing=0.001)
    assert ours("exo", batch) == close(theirs, abs=1e-6)
