"""One rule for verdicts: beyond noise and large enough to matter, surely too small, or not told."""

from __future__ import annotations

import math

import pytest

from prefopt.common.estimate import Estimate
from prefopt.common.smallest_effects import verdict


@pytest.mark.parametrize(
    ("difference", "half_width", "wanted"),
    [(0.2, 0.1, "better"), (-0.2, 0.1, "worse"), (0.1, 0.05, "better"), (0.05, 0.01, "tie"), (-0.05, 0.04, "tie"),
     (0.0, 0.0, "tie"), (0.05, 0.05, "cannot_tell"), (0.09, 0.02, "cannot_tell"), (0.2, 0.3, "cannot_tell"),
     (0.2, 0.2, "cannot_tell"), (0.2, math.nan, "cannot_tell"), (0.0, math.nan, "cannot_tell")],
)  # fmt: skip
def test_a_difference_of_a_tenth_matters(difference: float, half_width: float, wanted: str) -> None:
    assert verdict(difference, half_width, 0.1) == wanted
    other = {"better": "worse", "worse": "better"}.get(wanted, wanted)
    assert verdict(-difference, half_width, 0.1) == verdict(difference, half_width, 0.1, better=-1) == other


def test_where_every_difference_matters_nothing_is_a_tie() -> None:
    assert verdict(1e-9, 0.0, 0.0) == "better"
    assert verdict(0.0, 0.0, 0.0) == "cannot_tell"


def test_where_no_difference_matters_all_is_a_tie() -> None:
    assert verdict(3.0, 0.1, math.inf) == "tie"


@pytest.mark.parametrize(
    ("value", "wanted"), [(2.1, "better"), (1.9, "cannot_tell"), (-1.9, "cannot_tell"), (-2.1, "worse")]
)
def test_an_estimate_has_two_standard_errors(value: float, wanted: str) -> None:
    assert Estimate(value, 1.0, 10).verdict(0.1) == wanted


def test_the_deviation_of_independent_values() -> None:
    """The standard error of four values is half their standard deviation."""
    assert Estimate(0.0, 0.5, 4).deviation == 1.0
