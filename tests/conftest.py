"""Shared fixtures: one thread, offline hub, the folder of real data where there is one."""

from __future__ import annotations

import gc
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # a warning at import, by whichever test comes first
os.environ.setdefault("PREFOPT_CACHE", str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "prefopt"))

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from prefopt.worlds.build import WorldFiles

torch.set_num_threads(1)
# The same cases every time, however slow the machine.
settings.register_profile("suite", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real preference data: `$PREFOPT_SHARED_DATA`, or `shared/data` beside the project."""
    candidates = [Path(__file__).resolve().parents[2] / "shared" / "data"]
    if "PREFOPT_SHARED_DATA" in os.environ:
        candidates.insert(0, Path(os.environ["PREFOPT_SHARED_DATA"]))
    for folder in candidates:
        if folder.is_dir():
            return folder
    pytest.skip("no folder of real data: set PREFOPT_SHARED_DATA")


@pytest.fixture(scope="session")
def world_files() -> WorldFiles:
    """The default review world: models and pairs. Built once (20 seconds), then kept in the tests' cache."""
    from prefopt import worlds

    return worlds.resolve()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first: begun last, they would keep one worker busy when the other has nothing left."""
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


def pytest_collection_finish() -> None:
    """Keep the collector off all that imports made: accelerate collects several times in each training."""
    gc.collect()
    gc.freeze()
