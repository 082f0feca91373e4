"""Numbers as text."""

from __future__ import annotations

import pytest

from prefopt.report.formatting import number, signed


@pytest.mark.parametrize(
    ("value", "plain", "with_sign"),
    [(1.234, "1.23", "+1.23"), (-1.234, "−1.23", "−1.23"), (-0.001, "0.00", "0.00"), (float("nan"), "–", "–")],
)
def test_numbers(value: float, plain: str, with_sign: str) -> None:
    assert (number(value), signed(value)) == (plain, with_sign)
