"""Trainers collect garbage at their start: what has been imported by then need not be looked at each time."""

from __future__ import annotations

import gc

import pytest

from tests.train import tiny as _  # noqa: F401 - imports what trainers need


@pytest.fixture(scope="session", autouse=True)
def _frozen_imports() -> None:
    gc.freeze()
