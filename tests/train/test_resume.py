"""What a resume goes on from and what it refuses, what a kill leaves, and weights that an update broke."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from prefopt.errors import TrainingError, UserError
from prefopt.losses.registry import load
from prefopt.plugin import Data
from prefopt.runs.resume import checkpoint_to_resume
from prefopt.train import BatchConfig
from prefopt.train.callbacks import MetricsFile
from prefopt.train.checkpoints import checkpoints, rotate
from prefopt.train.checks import NotFinite
from prefopt.train.checksums import checksums, files_of, write_checksums, wrong_with
from prefopt.train.run_identity import IDENTITY
from prefopt.train.saving import first_weights_not_finite
from tests.train import tiny

DATA = tiny.records(Data.PAIRS, 8)
OPTIONS: dict[str, Any] = {"batch": BatchConfig(records=4), "max_steps": 3, "save_strategy": "steps", "save_steps": 1}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with checkpoints 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("saved")
    tiny.run(load("simpo"), DATA, folder, **OPTIONS, lr_scheduler_type="constant")
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run", symlinks=True))


def quiet(line: str) -> None:
    """Nobody listens."""


# ---- weights


@pytest.mark.parametrize("saves", ["no", "steps"])
def test_weights_that_the_last_update_broke_are_saved_nowhere(saves: str, tmp_path: Path) -> None:
    """The gradient is finite; the update is not, and no further step would notice."""
    options = OPTIONS | {"max_steps": 1, "save_strategy": saves, "learning_rate": 1e300, "weight_decay": 1e300}
    with pytest.raises(NotFinite, match=r"step 1: loss and gradient were finite, .*; lower trainer\.learning_rate"):
        tiny.run(load("dpo"), DATA, tmp_path, **options)
    assert checkpoints(tmp_path) == []
    assert not list(tmp_path.glob("tmp-*"))


def test_only_weights_that_are_trained_are_looked_at() -> None:
    last = torch.nn.Linear(2, 2)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), last)
    assert first_weights_not_finite(model) is None
    with torch.no_grad():
        last.bias[0] = float("nan")
        last.weight[0] = 3e38  # large, but finite
    assert first_weights_not_finite(model) == "1.bias"
    last.bias.requires_grad_(False)
    assert first_weights_not_finite(model) is None
    assert first_weights_not_finite(model.requires_grad_(False)) is None


# ---- what is gone on from


def test_broken_checkpoints_alone_are_refused_by_the_second_command_too(copy: Path) -> None:
    for checkpoint in checkpoints(copy):
        (checkpoint / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="none that can be resumed from"):
        checkpoint_to_resume(copy, "auto", quiet)
    with pytest.raises(UserError, match=r"no checkpoint but broken ones \(broken-checkpoint-1, .*delete them to start"):
        checkpoint_to_resume(copy, "auto", quiet)
    for broken in copy.glob("broken-checkpoint-*"):
        shutil.rmtree(broken)
    assert checkpoint_to_resume(copy, "auto", quiet) is None


@pytest.mark.parametrize("name", ["checksums.json", "optimizer.pt"])
def test_a_disk_that_cannot_be_read_is_no_damage(name: str, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is passed over, renamed or written."""
    opened = Path.open

    def fails(path: Path, *given: Any, **kw: Any) -> Any:
        if path == copy / "checkpoint-3" / name:
            raise OSError(errno.EIO, "Input/output error")
        return opened(path, *given, **kw)

    monkeypatch.setattr(Path, "open", fails)
    with pytest.raises(TrainingError, match=r"checkpoint-3 cannot be read .*Input/output error.*start again"):
        checkpoint_to_resume(copy, "auto", quiet)
    assert [p.name for p in checkpoints(copy)] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


def test_resume_from_a_folder_writes_over_nothing(copy: Path) -> None:
    """Neither a finished run nor later checkpoints; by the step that it has, not by its name."""
    with pytest.raises(UserError, match=r"has later checkpoints \(checkpoint-2, checkpoint-3\).*another output_dir"):
        checkpoint_to_resume(copy, str(copy / "checkpoint-1"), quiet)
    renamed = copy.parent / "kept-9"
    shutil.copytree(copy / "checkpoint-2", renamed)
    with pytest.raises(UserError, match=r"has later checkpoints \(checkpoint-3\)"):
        checkpoint_to_resume(copy, str(renamed), quiet)
    assert checkpoint_to_resume(copy.parent / "new", str(renamed), quiet) == renamed
    assert checkpoint_to_resume(copy, str(copy / "last"), quiet) == copy / "last"
    (copy / "summary.json").write_text("{}")
    with pytest.raises(UserError, match="already has a finished run"):
        checkpoint_to_resume(copy, str(copy / "checkpoint-3"), quiet)


def test_a_run_at_a_constant_rate_may_go_on_for_longer(copy: Path) -> None:
    more = OPTIONS | {"max_steps": 4, "lr_scheduler_type": "constant"}
    kept = tiny.run(load("simpo"), DATA, copy, resume=copy / "checkpoint-3", **more)
    assert kept.trainer.state.global_step == 4


def test_a_checkpoint_of_an_earlier_version_is_taken(copy: Path) -> None:
    """What its `run.json` does not have cannot be compared."""
    checkpoint = copy / "checkpoint-3"
    identity = json.loads((checkpoint / IDENTITY).read_text())
    earlier = {name: identity[name] for name in ("loss", "batch.records", "seed", "reference")} | {"records": "abc"}
    (checkpoint / IDENTITY).write_text(json.dumps(earlier))
    write_checksums(checkpoint, checksums(checkpoint, files_of(checkpoint)), resumable=True)
    tiny.run(load("simpo"), DATA, copy, resume=checkpoint, **OPTIONS, lr_scheduler_type="constant")


# ---- what a kill leaves


def test_a_checkpoint_that_was_being_replaced_is_put_back(copy: Path) -> None:
    (copy / "checkpoint-3").rename(copy / "tmp-old-checkpoint-3")
    (copy / "tmp-checkpoint-3").mkdir()
    shutil.copytree(copy / "checkpoint-2", copy / "tmp-old-checkpoint-2")
    (copy / "tmp-gone-checkpoint-1").mkdir()
    assert checkpoint_to_resume(copy, "auto", quiet) == copy / "checkpoint-3"
    assert wrong_with(copy / "checkpoint-3") is None
    assert not list(copy.glob("tmp-old-*"))
    assert not list(copy.glob("tmp-gone-*"))


def test_rotation_keeps_what_was_just_written(tmp_path: Path) -> None:
    for step in (2, 6, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
    rotate(tmp_path, 1, None, tmp_path / "checkpoint-2")
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-8"]


@pytest.mark.parametrize("left", ['{"step": 0, "eval_loss": 9.0, "old": 1}', '{"step": 4, "train_runtime": 1.0}'])
def test_figures_of_an_attempt_without_a_checkpoint_are_gone(left: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 0, "eval_loss": 9.0}}\n{left}\n')
    state: Any = type("State", (), {"is_world_process_zero": True, "global_step": 0})
    file = MetricsFile(path)
    file.on_log(None, state, None, {"eval_loss": 1.0})
    file.on_train_begin(None, state, None)
    file.on_log(None, state, None, {"loss": 2.0})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 0, "eval_loss": 1.0}, {"step": 0, "loss": 2.0}]
