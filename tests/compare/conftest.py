"""A small comparison that a user could run: a tiny model, forty pairs, two methods."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefopt.cli import main
from tests.cli.conftest import model_folder, pairs_file

__all__ = ["model_folder", "pairs_file"]


@pytest.fixture(scope="session")
def words(model_folder: Path, pairs_file: Path) -> list[str]:
    """What makes a comparison on the tiny model take seconds."""
    return [
        "model=local", f"model.path={model_folder}", "data=auto", f"data.path={pairs_file}", "data.eval_records=16",
        "batch.records=8", "trainer.max_steps=2", "trainer.learning_rate=1e-2", "trainer.warmup_steps=0",
        "evaluation.max_new_tokens=4", "evaluation.kl_prompts=6", "budget.trials=1", "seeds=2", "workers=0",
        "trainer.logging_steps=1",
    ]  # fmt: skip


@pytest.fixture
def hold(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """`prefopt compare` in this process; gives its `results.json`."""
    monkeypatch.chdir(tmp_path)

    def run(*given: str, folder: Path = tmp_path / "out") -> dict[str, Any]:
        names = {word.split("=")[0] for word in given}
        kept = [word for word in words if word.split("=")[0] not in names]
        assert main(["compare", *kept, *given, f"output_dir={folder}"]) == 0
        content: dict[str, Any] = json.loads((folder / "results.json").read_text())
        return content

    return run
