"""Shared settings and fixtures: one thread, no hub, the folder of real data, the default world."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # it would warn at import
os.environ.setdefault("PREFOPT_CACHE", str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "prefopt"))

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from prefopt.worlds.build import WorldFiles

torch.set_num_threads(1)
# No test cuts the power, and a run waits for the disk twenty times.
os.fsync = lambda descriptor: None  # type: ignore[assignment]
# The same cases every time, without limits on time.
settings.register_profile("suite", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real preference data: `$PREFOPT_SHARED_DATA`, or `shared/data` next to the project."""
    candidates = [Path(__file__).resolve().parents[2] / "shared" / "data"]
    if "PREFOPT_SHARED_DATA" in os.environ:
        candidates.insert(0, Path(os.environ["PREFOPT_SHARED_DATA"]))
    for folder in candidates:
        if folder.is_dir():
            return folder
    pytest.skip("no folder of real data: set PREFOPT_SHARED_DATA")


@pytest.fixture(scope="session")
def world_files() -> WorldFiles:
    """The default review world: models and pairs. Built once (20 seconds), then cached."""
    from prefopt import worlds

    return worlds.resolve()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest tests first; started last, they would keep one worker busy while the other is idle."""
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


_imported = 0


def _exempt_imports() -> None:
    """Exempt what imports created from garbage collection, which every training runs twice."""
    global _imported
    if len(sys.modules) > _imported + 50:
        gc.collect()
        gc.freeze()
        _imported = len(sys.modules)


def pytest_collection_finish() -> None:
    _exempt_imports()


def pytest_runtest_setup() -> None:
    _exempt_imports()
