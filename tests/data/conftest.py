"""Every test of the data layer has a cache of its own."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "prefopt-cache"))
