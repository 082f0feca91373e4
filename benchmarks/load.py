"""Measures how much of the cores other processes took while something was timed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import psutil

QUIET = 0.05  # share of the cores that others may take
_T = TypeVar("_T")


@dataclass(frozen=True)
class Timed:
    """What the machine did while something ran.

    Attributes:
        others: share of the cores that other processes took, 0 to 1.
        tries: how often it ran until others took at most `QUIET`, or until no try was left.
    """

    others: float
    tries: int = 1

    @property
    def quiet(self) -> bool:
        """Whether others took no more than they may."""
        return self.others <= QUIET


class OtherLoad:
    """Counts the processor time of other processes from its creation on; children count as own once they are waited
    for."""

    def __init__(self) -> None:
        self._start, self._busy, self._own = time.perf_counter(), _busy(), _own()

    def share(self) -> float:
        """The share of all cores that others have taken since."""
        seconds = (time.perf_counter() - self._start) * (psutil.cpu_count() or 1)
        others = (_busy() - self._busy) - (_own() - self._own)
        return max(0.0, others / seconds)


def until_quiet(run: Callable[[], _T], tries: int, say: Callable[[str], None]) -> tuple[_T, Timed]:
    """Run something again until other processes left the cores alone; of `tries` disturbed ones the least disturbed."""
    found: list[tuple[_T, float]] = []
    for left in reversed(range(tries)):
        load = OtherLoad()
        result = run()
        found.append((result, load.share()))
        if found[-1][1] <= QUIET:
            break
        what = "discarded, and run again" if left else "no try is left"
        say(f"  other processes took {found[-1][1]:.0%} of the cores: {what}")
    result, others = min(found, key=lambda one: one[1])
    return result, Timed(others, len(found))


def _busy() -> float:
    t = psutil.cpu_times()
    return float(sum(getattr(t, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal")))


def _own() -> float:
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system
