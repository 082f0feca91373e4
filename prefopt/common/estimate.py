"""Means with standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.common.smallest_effects import Verdict, verdict

HALF_WIDTH = 2.0  # of an interval, in standard errors: it holds 95 %


def shares_won(margin: Any) -> NDArray[np.float64]:
    """What each pair counts in an accuracy or win rate: 1 where the margin is positive, 0 where it is negative, and 1/2
    for a tie."""
    won: NDArray[np.float64] = np.heaviside(np.asarray(margin, dtype=np.float64), 0.5)
    return won


@dataclass(frozen=True)
class Estimate:
    """A mean, its standard error (nan where there is only one independent value), and the number of values."""

    value: float
    se: float
    count: int

    @classmethod
    def of(cls, values: NDArray[np.float64], groups: Sequence[Any] | None = None) -> Estimate:
        """Estimate the mean of (n,) values.

        Args:
            values: independent of each other, unless `groups` are given.
            groups: (n,) names; values of one group (records of one prompt) may depend on each other, and values that
                are not finite are left out. The standard error is then the cluster-robust one (Liang and Zeger, 1986,
                Biometrika 73:13), which is the usual one where every group has one value.
        """
        if groups is None:
            n = len(values)
            return cls(float(values.mean()), float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan, n)
        kept = np.isfinite(values)
        x = values[kept]
        if not len(x):
            return cls(math.nan, math.nan, 0)
        _, group = np.unique(np.asarray(groups)[kept], return_inverse=True)
        sums = np.bincount(group.ravel(), weights=x - x.mean())
        count = len(sums)
        se = float(np.sqrt((sums**2).sum() * count / (count - 1)) / len(x)) if count > 1 else math.nan
        return cls(float(x.mean()), se, len(x))

    @property
    def half_width(self) -> float:
        """Half the width of its interval; nan where there is only one independent value."""
        return HALF_WIDTH * self.se

    @property
    def deviation(self) -> float:
        """The standard deviation of its values, where they are independent."""
        return self.se * math.sqrt(self.count)

    def verdict(self, least: float, *, better: int = 1) -> Verdict:
        """Judge it as a difference, by the smallest that matters (`prefopt.common.smallest_effects`)."""
        return verdict(self.value, self.half_width, least, better=better)

    @classmethod
    def from_plain(cls, found: Mapping[str, Any]) -> Estimate:
        """From what `plain` gave."""
        value, se = (math.nan if found.get(name) is None else found[name] for name in ("value", "se"))
        return cls(value, se, found.get("count") or 0)

    def plain(self) -> dict[str, float | int | None]:
        """As JSON values; what is not a number is null."""
        return {
            "value": self.value if math.isfinite(self.value) else None,
            "se": self.se if math.isfinite(self.se) else None,
            "count": self.count,
        }
