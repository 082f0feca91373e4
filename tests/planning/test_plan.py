"""A plan says what the run does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.cli import main
from prefopt.config.compose import compose
from prefopt.models.load import load_model, load_tokenizer
from prefopt.runs.resolve import prepared_data
from prefopt.train import build


@pytest.fixture
def plan(
    model_folder: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:  # fmt: skip
    """`prefopt plan --json` on the small model and data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFOPT_MALLOC", "0")

    def call(*more: str) -> dict[str, Any]:
        given = [f"model.path={model_folder}", f"data.path={pairs_file}", "data.eval_records=8", "batch.records=8",
                 "evaluation.texts=1", "evaluation.kl_prompts=2", "evaluation.max_new_tokens=4"]  # fmt: skip
        assert main(["plan", "--json", *given, *more]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return call


def test_says_what_others_build_on(plan: Any, tmp_path: Path) -> None:
    found = plan("trainer.num_train_epochs=2")
    assert {"steps", "tokens_per_step", "memory_gib", "seconds", "warnings"} <= found.keys()
    assert found["records"] == 32
    assert found["held_out"] == 8
    assert found["steps"] == 8  # 32 records, 8 a step, two epochs
    parts = ["weights", "gradients", "optimizer", "activations", "head", "reference", "libraries"]
    assert list(found["memory_gib"]) == [*parts, "total"]
    assert found["memory_gib"]["total"] == pytest.approx(sum(found["memory_gib"][p] for p in parts), abs=1e-3)
    assert found["seconds"] > 0
    assert found["config"]["loss"] == {"name": "dpo", "beta": 0.1}
    assert "32 pairs to train on, fewer than 1,000" in found["warnings"][0]
    assert not list(tmp_path.iterdir()), "a plan leaves nothing behind"


def test_warns_where_nothing_is_held_out(plan: Any) -> None:
    assert any("nothing is held out" in warning for warning in plan("data.eval_records=0")["warnings"])


def test_tokens_are_those_that_the_run_feeds(plan: Any, model_folder: Path, pairs_file: Path, tmp_path: Path) -> None:

    config = compose(
        [f"model.path={model_folder}", f"data.path={pairs_file}", "data.eval_records=8", "batch.records=8"]
    )
    prepared = prepared_data(config, load_tokenizer(config.model))
    trainer = build(load_model(config.model), config.loss, prepared.train, output_dir=tmp_path / "run",
                    batch=config.batch, store=tmp_path / "store")  # fmt: skip
    fed = [batch.tokens_fed for batch in trainer.shares("train")]
    assert plan()["tokens_per_step"] == round(sum(fed) / len(fed))


def test_another_device(plan: Any) -> None:
    found = plan("--device", "a100-80")
    assert found["device"] == "NVIDIA A100 SXM 80 GB"
    assert found["seconds_measured"] is False
    assert found["memory_free_gib"] == pytest.approx(80e9 / 2**30, abs=0.01)
    assert found["micro_batches_per_step"] == 1  # rows of a GPU's length, not of this machine's
