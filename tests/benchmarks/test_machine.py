"""What counts as other processes' work, and when a measurement is repeated."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import machine


def test_own_work_is_not_that_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = iter([10.0, 13.0])
    own = iter([2.0, 4.5])
    clock = iter([100.0, 105.0])
    monkeypatch.setattr(machine, "_busy", lambda: next(busy))
    monkeypatch.setattr(machine, "_own", lambda: next(own))
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert machine.Others().share() == pytest.approx((3.0 - 2.5) / 10)


@pytest.mark.parametrize(
    ("shares", "kept", "tries", "quiet"),
    [([0.01], 0, 1, True), ([0.3, 0.05, 0.0], 1, 2, True), ([0.3, 0.1, 0.2], 1, 3, False)],
)
def test_disturbed_runs_are_repeated(
    shares: list[float], kept: int, tries: int, quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, runs, said = iter(shares), iter(range(9)), []
    monkeypatch.setattr(machine.Others, "share", lambda self: next(given))
    result, timed = machine.until_quiet(lambda: next(runs), 3, said.append)
    assert (result, timed.tries, timed.quiet) == (kept, tries, quiet)
    assert len(said) == tries - quiet
