"""Measures a reward model on held-out records: accuracy with ties, calibration, and what it makes of length.

The model says that the chosen completion of a pair wins with the probability sigmoid(s_chosen - s_rejected). It is
calibrated if of the pairs on whose winner it is 70 % sure, it is right about 70 %.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.common.estimate import Estimate, shares_won
from prefopt.evaluate.held_out import SIDES, HeldOut

Floats = NDArray[np.float64]
BINS = np.linspace(0.5, 1.0, 6)  # of how sure the model is, whichever side it prefers


def figures(scores: HeldOut) -> dict[str, Any]:
    """The figures of a reward model's scores as JSON values; those of pairs only where records have two sides.

    `accuracy` counts a tie as half, `accuracy_strict` as wrong; `ties` is their share. `score` is the mean of all
    scores and `score_std` their standard deviation. `calibration` has for each bin of confidence the mean confidence,
    the share of pairs ranked right, and their number; `calibration_error` is the mean distance of the two over pairs.
    `by_length` has the accuracy where the chosen side is longer, shorter and as long; `length_correlation` is that of
    scores and lengths over all completions.
    """
    everything = np.concatenate([scores.sums[side] for side in SIDES])
    lengths = np.concatenate([scores.tokens[side] for side in SIDES])
    there = np.isfinite(everything)
    found: dict[str, Any] = {
        "score": float(everything[there].mean()),
        "score_std": float(everything[there].std()),
        "length_correlation": _correlation(everything[there], lengths[there]),
    }
    if not scores.paired:
        return found
    margin = scores.sums["chosen"] - scores.sums["rejected"]
    longer = scores.tokens["chosen"] - scores.tokens["rejected"]
    right = np.where(np.isnan(margin), np.nan, shares_won(margin))
    strict = np.where(np.isnan(margin), np.nan, margin > 0)
    tied = np.where(np.isnan(margin), np.nan, margin == 0)
    columns = {"accuracy": right, "accuracy_strict": strict, "ties": tied, "margin": margin}
    found |= {name: Estimate.of(values, scores.prompts).plain() for name, values in columns.items()}
    found |= calibration(margin[np.isfinite(margin)])
    found["by_length"] = {
        name: Estimate.of(right[where], [p for p, w in zip(scores.prompts, where, strict=True) if w]).plain()
        for name, where in {"longer": longer > 0, "shorter": longer < 0, "same": longer == 0}.items()
        if where.any()
    }
    return found


def calibration(margin: Floats) -> dict[str, Any]:
    """The bins of confidence of (n,) margins, and the mean distance of confidence and share ranked right."""
    confidence, right = 1 / (1 + np.exp(-np.abs(margin))), shares_won(margin)
    place = np.clip(np.digitize(confidence, BINS) - 1, 0, len(BINS) - 2)
    bins, error = [], 0.0
    for i in range(len(BINS) - 1):
        here = place == i
        if here.any():
            sure, share = float(confidence[here].mean()), float(right[here].mean())
            bins.append({"confidence": sure, "right": share, "count": int(here.sum())})
            error += abs(sure - share) * float(here.mean())
    return {"calibration": bins, "calibration_error": error}


def _correlation(scores: Floats, lengths: Floats) -> float | None:
    """None where either does not vary."""
    if len(scores) < 2 or not scores.std() or not lengths.std():
        return None
    found = float(np.corrcoef(scores, lengths)[0, 1])
    return found if math.isfinite(found) else None
