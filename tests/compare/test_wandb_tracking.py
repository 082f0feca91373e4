"""A comparison in Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Hold = Callable[..., dict[str, Any]]


@pytest.mark.slow
def test_a_comparison_in_wandb_is_one_group(hold: Hold, finished: Path, tmp_path: Path) -> None:
    hold("losses=[dpo]", "seeds=1", "tracking=wandb", "tracking.mode=offline", keep=finished)
    runs = list((tmp_path / "out" / "wandb").glob("offline-run-*"))
    assert len(runs) == 4  # base, sft, dpo, and the summary
