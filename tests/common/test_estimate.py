"""Means with standard errors, against arithmetic by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prefopt.common.estimate import Estimate


def test_independent_values() -> None:
    assert Estimate.of(np.array([1.0, 2.0, 6.0])) == Estimate(3.0, pytest.approx(math.sqrt(7 / 3)), 3)
    assert math.isnan(Estimate.of(np.array([1.0])).se)


def test_groups_of_one_value_each_are_independent_values() -> None:
    values = np.array([1.0, 2.0, 3.0, 6.0])
    assert Estimate.of(values, list("abcd")).se == pytest.approx(Estimate.of(values).se)
