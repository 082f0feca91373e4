"""`prefopt import` shows what has no equivalent and what differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from prefopt.cli import main
from tests.migrate.settings import written


def test_what_has_no_equivalent_and_what_differs_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = written(tmp_path, {"loss_type": "hinge", "neftune_noise_alpha": 5, "no_such_option": 1})
    ours = tmp_path / "ours.yaml"
    assert main(["import", theirs, "--to", str(ours)]) == 0
    said = capsys.readouterr().out
    assert "neftune_noise_alpha: noise on the embeddings" in said
    assert "no_such_option: not a known option of TRL's DPOConfig" in " ".join(said.split())
    assert "it is RSO's, not `slic_hf`" in " ".join(said.split())  # in the words of the compat preset
    assert "still to be given: model.path, data.path" in said
    assert "# No equivalent: neftune_noise_alpha" in ours.read_text()
    assert main(["import", theirs, "--to", str(ours)]) == 2  # it is there already
    assert main(["import", theirs, "--json"]) == 0
    assert {"overrides", "no_equal", "differs"} <= json.loads(capsys.readouterr().out).keys()


def test_a_config_with_evaluation_and_a_file_runs_unedited(
    model_folder: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    theirs = written(tmp_path, {
        "model_name_or_path": str(model_folder), "dataset_name": str(pairs_file), "loss_type": "sigmoid",
        "eval_strategy": "steps", "eval_steps": 1, "max_steps": 1, "per_device_train_batch_size": 8,
        "bf16": True, "output_dir": "out", "gradient_checkpointing": False,
    })  # fmt: skip
    assert main(["import", theirs, "--class", "DPOConfig", "--to", "ours.yaml"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "a file has no split 'test'; 5 % of its prompts are held out instead" in said
    run = ["train", "experiment=ours.yaml", "evaluation.max_new_tokens=2", "evaluation.kl_prompts=2"]
    if not torch.cuda.is_available():
        assert "prefopt train experiment=ours.yaml trainer.bf16=false" in said
        assert "on this machine: with trainer.bf16=false: no GPU here computes in bfloat16" in said
        assert main(run) == 2
        assert "add trainer.bf16=false" in capsys.readouterr().err
        run.append("trainer.bf16=false")
    assert main(run) == 0
    assert "8 held out (5 % of the prompts" in capsys.readouterr().out
