"""What a result file says of the machine that it was measured on, and of what else the machine did meanwhile."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

QUIET = 0.05  # the share of the cores that others may take while a figure is measured; above it, the figure is marked
_T = TypeVar("_T")


def processor() -> str:
    """The model name of the processor."""
    information = Path("/proc/cpuinfo")
    for line in information.read_text().splitlines() if information.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


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


class Others:
    """Measures, from its making on, the share of the cores that other processes take than this one and its children.

    Children count when they have ended.
    """

    def __init__(self) -> None:
        self._began, self._busy, self._own = time.perf_counter(), _busy(), _own()

    def share(self) -> float:
        """0 to 1, since this object was made."""
        cores, wall = os.cpu_count() or 1, time.perf_counter() - self._began
        others = _busy() - self._busy - (_own() - self._own)
        return min(1.0, max(0.0, others / (cores * wall)))


def until_quiet(run: Callable[[], _T], tries: int, say: Callable[[str], None]) -> tuple[_T, Timed]:
    """Run something again until other processes left the cores alone; of `tries` disturbed ones the least disturbed."""
    found: list[tuple[_T, float]] = []
    for left in reversed(range(tries)):
        load = Others()
        result = run()
        found.append((result, load.share()))
        if found[-1][1] <= QUIET:
            break
        what = "discarded, and run again" if left else "no try is left"
        say(f"  other processes took {found[-1][1]:.0%} of the cores: {what}")
    result, others = min(found, key=lambda one: one[1])
    return result, Timed(others, len(found))


def _busy() -> float:
    """Seconds that all cores have worked, those that the host took away included."""
    times = psutil.cpu_times()
    kinds = ("user", "nice", "system", "irq", "softirq", "steal")
    return float(sum(getattr(times, kind, 0.0) for kind in kinds))


def _own() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
