"""The tally of fuzz cases, behind the tests of one process: `PREFOPT_FUZZ=100000 pytest tests/fuzz` shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fuzz import hostile


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Cases may write into the tests' own folders alone."""
    with hostile.only_inside(tmp_path_factory.getbasetemp()):
        yield


def pytest_terminal_summary(terminalreporter: Any) -> None:
    names = sorted({name for name, _ in hostile.done})
    for name in names:
        accepted, refused = (hostile.done[name, kind] for kind in ("accepted", "refused"))
        slowest = hostile.slowest[name]
        terminalreporter.line(f"{name}: {accepted + refused} cases, {refused} refused, slowest {slowest:.2f} s")
    if names:
        refused = sum(count for (_, kind), count in hostile.done.items() if kind == "refused")
        terminalreporter.line(f"fuzz: {hostile.done.total()} cases, {refused} refused in words of ours")
