"""A plan of stages counts every stage that is still to be run, and says which is which."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefopt.cli import main
from prefopt.config.compose import compose
from prefopt.errors import UserError
from prefopt.losses.bradley_terry import BradleyTerry
from prefopt.planning import staged
from prefopt.planning.staged import plan_stages
from prefopt.runs.stages import in_a_row


@pytest.fixture
def given(model_folder: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFOPT_MALLOC", "0")
    return ["experiment=sft_then_dpo", f"model.path={model_folder}", f"data.path={pairs_file}", "data.eval_records=8",
            "trainer.max_steps=3", "batch.records=8", "stages.sft.batch.records=16", "stages.sft.trainer.max_steps=5",
            "evaluation.texts=0", "evaluation.kl_prompts=0"]  # fmt: skip


def test_every_stage_is_planned_and_a_finished_one_takes_nothing(
    given: list[str], model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--json", *given]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    sft = found["stages"]["sft"]
    assert (found["steps"], sft["steps"], found["total"]["steps"]) == (3, 5, 8)
    assert (found["records_per_step"], sft["records_per_step"]) == (8, 16)
    assert sft["tokens_per_step"] != found["tokens_per_step"]
    assert found["total"]["seconds"] == pytest.approx(sft["seconds"] + found["seconds"], abs=2e-3)
    assert found["total"]["memory_gib"] == max(sft["memory_gib"]["total"], found["memory_gib"]["total"])
    assert not any("without SFT" in warning for warning in found["warnings"])
    shutil.copytree(model_folder, Path(sft["folder"], "final"))  # as a finished stage leaves it
    Path(sft["folder"], "summary.json").touch()
    assert main(["plan", *given]) == 0
    shown = capsys.readouterr().out
    assert "stage sft: sft, found in" in shown
    assert "in all: 3 steps" in shown


def test_a_later_stage_is_planned_on_what_is_known_of_its_start(
    given: list[str], model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = []

    def recorded(config: Any, device: Any = None, *, tuned: bool = False) -> Any:
        planned.append((config.model.path, config.data.template, tuned))

    monkeypatch.setattr(staged, "plan", recorded)
    plan_stages(compose([*given, "stages.sft.data.template=chatml"]))
    assert planned == [(str(model_folder), "chatml", False), (str(model_folder), "chatml", True)]


def test_an_error_names_its_stage(given: list[str]) -> None:
    with pytest.raises(UserError, match=r"^stage sft: .*nowhere\.jsonl"):
        plan_stages(compose([*given, "stages.sft.data.path=nowhere.jsonl"]))


def test_a_reward_model_starts_no_policy(given: list[str]) -> None:
    config = compose(given)
    rm = replace(config.stages["sft"], loss=BradleyTerry(), loss_name="bradley_terry")
    with pytest.raises(UserError, match="loss=bradley_terry trains a reward model, which loss=dpo cannot start from"):
        in_a_row(replace(config, stages={"rm": rm}))


def test_a_shape_has_no_stages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model-shape", "llama3-8b", "experiment=sft_then_dpo"]) == 2
    assert "on given records: no stages;" in capsys.readouterr().err
