"""The batch on which losses are compared with TRL's code."""

from __future__ import annotations

import pytest

from prefopt.testing.samples import Named
from tests.losses.trl_peer import frozen_pairs


@pytest.fixture(scope="session")
def batch() -> Named:
    pytest.importorskip("trl", reason="the peers extra is not installed")
    return frozen_pairs()
