"""Formats numbers for pages, tables and the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prefopt.common.estimate import Estimate


def number(value: float, digits: int = 2) -> str:
    """Format a figure with fixed digits and a true minus sign; a dash if it is not finite; never "-0.00"."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def signed(value: float, digits: int = 2) -> str:
    """Format a figure like `number`, with a plus sign above zero."""
    text = number(value, digits)
    return f"+{text}" if math.isfinite(value) and float(f"{value:.{digits}f}") > 0 else text


def with_unit(value: float, unit: str, *, bare: bool = False, sign: bool = False) -> str:
    """Format a value with its unit: shares in per cent, differences of shares in points."""
    write = signed if sign else number
    if unit in ("%", "points"):
        text = write(100 * value, 0 if abs(value) >= 0.02 or value == 0 else 1)
        return text if bare else f"{text} %" if unit == "%" else f"{text} points"
    digits = 2 if unit == "x" or abs(value) >= 0.1 or value == 0 else 3
    text = write(value, digits)
    if bare or not unit:
        return text
    return f"{text} times" if unit == "x" else f"{text} {unit}"


def with_error(figure: Estimate, unit: str, *, sign: bool = False, bare: bool = False) -> str:
    """Format a value ± its standard error, with the unit unless `bare`."""
    if not math.isfinite(figure.se):
        return with_unit(figure.value, unit, sign=sign, bare=bare)
    scale = 100.0 if unit in ("%", "points") else 1.0
    whole = figure.se >= 0.01 and not sign  # differences of shares get one more digit than shares
    digits = int(not whole) if scale > 1 else 2 if figure.se >= 0.005 else 3
    write = signed if sign else number
    text = f"{write(scale * figure.value, digits)} ± {number(scale * figure.se, digits)}"
    return text if bare else f"{text} {'times' if unit == 'x' else unit}".rstrip()


def listed(names: Sequence[str]) -> str:
    """Join names: a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
