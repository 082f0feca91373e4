"""A tie is half right wherever pairs are counted, with the share of ties beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prefopt.common.estimate import shares_won
from prefopt.compare.measure_texts import _pairs
from prefopt.compare.spec import METRICS
from prefopt.evaluate import held_out, reward_figures
from prefopt.evaluate.held_out import HeldOut
from prefopt.train.metrics import _wins

MARGINS = np.array([1.0, 0.0, -1.0, 0.0, 2.0])  # two wins, two ties: 3 of 5
RIGHT, TIED = 0.6, 0.4


def scored(margins: np.ndarray) -> HeldOut:
    n = len(margins)
    names = [str(i) for i in range(n)]
    sums = {"chosen": margins - 5.0, "rejected": np.full(n, -5.0)}
    return HeldOut(ids=names, prompts=names, sums=sums, tokens={side: np.ones(n) for side in sums})


def test_every_measurement_counts_a_tie_as_half() -> None:
    own, start = scored(MARGINS), scored(np.zeros(len(MARGINS)))
    assert shares_won(MARGINS).tolist() == [1, 0.5, 0, 0.5, 1]
    assert _wins(torch.tensor(MARGINS)).tolist() == shares_won(MARGINS).tolist()  # while training
    figures = held_out.figures(own)  # before and after a run, and `prefopt eval`
    assert figures["accuracies/logps"].value == figures["accuracies/logps_mean"].value == RIGHT
    assert figures["ties/logps"].value == TIED
    against = held_out.differences(own, start)
    assert (against["accuracies/ratios"].value, against["ties/ratios"].value) == (RIGHT, TIED)
    rewards = reward_figures.figures(own)  # of a reward model
    assert (rewards["accuracy"]["value"], rewards["ties"]["value"]) == (RIGHT, TIED)
    compared = _pairs(own, start)  # of a comparison
    for name in ("accuracy", "accuracy_sum", "accuracy_mean"):
        assert compared[name].mean() == pytest.approx(RIGHT)
    assert compared["ties"].mean() == pytest.approx(TIED)
    assert "ties" in METRICS
