"""Figures of held-out records on any data."""

from __future__ import annotations

import numpy as np

from prefopt.compare.measure_texts import _pairs
from prefopt.evaluate.held_out import HeldOut


def held_out(chosen: list[float], rejected: list[float]) -> HeldOut:
    """Records of 2 and 4 tokens; the first and the last have one prompt."""
    return HeldOut(
        ids=list("123"), prompts=list("aba"), sums={"chosen": np.array(chosen), "rejected": np.array(rejected)},
        tokens={"chosen": np.full(3, 2.0), "rejected": np.full(3, 4.0)},
    )  # fmt: skip


def test_records_of_one_prompt_are_averaged() -> None:
    found = _pairs(held_out([-1.0, -2.0, -4.0], [-3.0, -2.0, -3.0]), held_out([-2.0, -2.0, -2.0], [-2.0, -2.0, -2.0]))
    assert {name: values.tolist() for name, values in found.items()} == {
        "chosen_logp": [-2.5, -2.0],
        "chosen_change": [-0.5, 0.0],
        "rejected_change": [-1.0, 0.0],
        "accuracy": [0.5, 0.5],  # won and lost; a tie
        "accuracy_sum": [0.5, 0.0],
        "accuracy_mean": [0.5, 0.0],  # -.5 to -.75, -2 to -.75; -1 to -.5
        "margin": [0.5, 0.0],
    }
