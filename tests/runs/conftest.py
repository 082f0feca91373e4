"""A tiny model and a small file of pairs as for the command line's tests, and finished runs to export."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefopt.cli import main
from tests.cli.conftest import model_folder, pairs_file, run, sketched

__all__ = ["model_folder", "pairs_file", "run", "sketched"]


@pytest.fixture(scope="session")
def finished(model_folder: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of finished runs, by what was trained."""
    made = {}
    for peft in ("none", "lora"):
        made[peft] = tmp_path_factory.mktemp("runs") / peft
        given = [
            f"model.path={model_folder}", f"data.path={pairs_file}", f"output_dir={made[peft]}", f"peft={peft}",
            "data.eval_records=8", "data.template=chatml", "batch.records=8", "trainer.max_steps=3",
            "trainer.learning_rate=1e-2", "evaluation.max_new_tokens=4", "evaluation.kl_prompts=2",
        ]  # fmt: skip
        assert main(["train", *given]) == 0
    return made
