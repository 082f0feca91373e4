"""Kills, signals, bad disks, altered checkpoints, two runs in one folder: named, and nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import UserError
from prefopt.losses.registry import load
from prefopt.plugin import Data
from prefopt.runs.resume import checkpoint_to_resume
from prefopt.train import BatchConfig
from prefopt.train.checksums import wrong_with
from tests.train import tiny

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("PREFOPT_KILLS", "6"))  # a second to five each
SEED = int(os.environ.get("PREFOPT_KILLS_SEED", "0"))


def module(name: str, *argv: object) -> list[dict[str, Any]]:
    """The JSON lines that a test module prints in a process of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-m", name, *map(str, argv)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120 + 60 * KILLS)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Losses and all other figures, weights, states of the optimizer and of the random generators."""
    kills = module("tests.train.kills", tmp_path, KILLS, SEED)
    assert len(kills) == KILLS
    for kill in kills:
        assert kill["different"] == [], kill
        assert kill["left"] == [], kill
    placed = [kill["killed"] for kill in kills if kill["place"] != "by the clock"]  # the clock may come too late
    assert sum(placed) > len(placed) // 2
    if KILLS >= 30:
        print("\n" + "\n".join(f"{k['scenario']:25} {k['place']:32} from {k['resumed']}" for k in kills))


@pytest.mark.slow
def test_a_run_killed_in_the_middle_of_a_rollout_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """The texts that it draws again, with their rewards and advantages, too."""
    kills = module("tests.train.kills", tmp_path, 3, SEED, "rollouts")
    assert [kill["killed"] for kill in kills] == [True] * 3
    for kill in kills:
        assert kill["different"] == [], kill
        assert kill["left"] == [], kill


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with checkpoints 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("saved")
    tiny.run(load("simpo"), tiny.records(Data.PAIRS, 8), folder, batch=BatchConfig(records=4), max_steps=3,
             save_strategy="steps", save_steps=1)  # fmt: skip
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(saved, tmp_path / "run", symlinks=True))


def test_a_whole_checkpoint_is_taken_and_said(copy: Path) -> None:
    said: list[str] = []
    assert checkpoint_to_resume(copy, "auto", said.append) == copy / "checkpoint-3"
    assert said == [f"resume=auto: resuming from {copy / 'checkpoint-3'}"]
    elsewhere = copy / "elsewhere"
    assert checkpoint_to_resume(elsewhere, "auto", said.append) is None
    assert len(said) == 1, "nothing is said of a fresh folder"
    elsewhere.mkdir()
    (elsewhere / "manifest.json").touch()
    assert checkpoint_to_resume(elsewhere, "auto", said.append) is None
    assert said[-1] == f"resume=auto: an earlier run in {elsewhere} left no checkpoint; starting anew"


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


BREAKS: dict[str, tuple[Any, str]] = {
    "cut": (lambda c: os.truncate(c / "model.safetensors", 100), r"model.safetensors has 100 bytes where [\d,]+ were"),
    "flipped": (lambda c: _flip(c / "optimizer.pt"), "optimizer.pt was altered"),
    "state": (lambda c: _flip(c / "trainer_state.json"), "trainer_state.json was altered"),
    "missing": (lambda c: (c / "rng_state.pth").unlink(), "rng_state.pth is missing"),
    "empty": (lambda c: os.truncate(c / "checksums.json", 0), "checksums.json cannot be read"),
    "none": (lambda c: (c / "checksums.json").unlink(), "it has no checksums.json"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_checkpoint_is_named_kept_and_passed_over(name: str, copy: Path) -> None:
    how, says = BREAKS[name]
    how(copy / "checkpoint-3")
    before = {p.name: p.read_bytes() for p in (copy / "checkpoint-3").iterdir()}
    with pytest.raises(UserError, match=says):
        checkpoint_to_resume(copy, str(copy / "checkpoint-3"), print)
    said: list[str] = []
    assert checkpoint_to_resume(copy, "auto", said.append) == copy / "checkpoint-2"
    assert said[0].startswith("checkpoint-3 is passed over: ")
    assert {p.name: p.read_bytes() for p in (copy / "broken-checkpoint-3").iterdir()} == before, "nothing is lost"


def test_no_whole_checkpoint_is_refused_instead_of_starting_anew(copy: Path) -> None:
    for checkpoint in copy.glob("checkpoint-*"):
        (checkpoint / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="has checkpoints, but none that can be resumed from: choose another folder"):
        checkpoint_to_resume(copy, "auto", lambda line: None)


def test_checkpoints_of_weights_alone_are_not_resumed_from(tmp_path: Path) -> None:
    tiny.run(load("simpo"), tiny.records(Data.PAIRS, 8), tmp_path, batch=BatchConfig(records=4), max_steps=1,
             save_strategy="steps", save_steps=1, save_only_model=True)  # fmt: skip
    said: list[str] = []
    with pytest.raises(UserError, match="none that can be resumed from"):
        checkpoint_to_resume(tmp_path, "auto", said.append)
    assert "checkpoint-1 is passed over: it has weights alone" in said[0]
    with pytest.raises(UserError, match=r"it has weights alone; give them as model\.path"):
        checkpoint_to_resume(tmp_path, str(tmp_path / "checkpoint-1"), print)


def test_checksums_name_files_in_the_folder_only(copy: Path) -> None:
    """A list that points elsewhere reads nothing there."""
    outside = copy / "secret"
    outside.write_text("x")
    path = copy / "checkpoint-3" / "checksums.json"
    path.write_text(json.dumps({"files": {"../secret": {"sha256": "0", "bytes": 1}}}))
    assert wrong_with(copy / "checkpoint-3") == "../secret is missing"
