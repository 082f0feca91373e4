"""`prefopt rerun` that was interrupted or given from elsewhere, and `prefopt replay` in the run's precision."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from prefopt.cli import main
from prefopt.runs.rerun import folder_for
from tests.cli.conftest import Run

Capture = pytest.CaptureFixture[str]


def test_an_interrupted_repetition_goes_on_with_the_same_command(run: Run, capsys: Capture) -> None:
    from prefopt.runs import run as running

    assert run() == 0
    first, second = (run.out.with_name(name) for name in ("out-rerun", "out-rerun-2"))
    first.mkdir()
    (first / "notes.txt").write_text("somebody else's")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "drift_from_start", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
        assert main(["rerun", str(run.out)]) == 75
    assert (second / "checkpoint-4").is_dir()
    capsys.readouterr()
    assert main(["rerun", str(run.out)]) == 0
    shown = capsys.readouterr().out
    assert f"going on from {second / 'checkpoint-4'}" in shown
    assert "identical: " in shown
    assert folder_for(run.out) == run.out.with_name("out-rerun-3"), "a finished one is left alone"


def test_another_run_is_not_gone_on_with(run: Run, capsys: Capture) -> None:
    other = run.out.with_name("other")
    assert run("seed=3", f"output_dir={other}", "trainer.save_strategy=steps", "trainer.save_steps=2") == 0
    assert run() == 0
    (other / "summary.json").unlink()
    before = sorted(other.rglob("*"))
    assert main(["rerun", str(run.out), "--output-dir", str(other)]) == 2
    assert f"--output-dir={other} has another run" in capsys.readouterr().err
    assert sorted(other.rglob("*")) == before


def test_relative_paths_are_those_of_the_run(
    run: Run, model_folder: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    then, now = tmp_path / "then", tmp_path / "now"
    then.mkdir()
    now.mkdir()
    (then / "model").symlink_to(model_folder)
    (then / "pairs.jsonl").symlink_to(pairs_file)
    monkeypatch.chdir(then)
    assert run("model.path=model", "data.path=pairs.jsonl") == 0
    assert json.loads((run.out / "manifest.json").read_text())["folder"] == str(then)
    monkeypatch.chdir(now)
    capsys.readouterr()
    assert main(["eval", str(run.out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["against"] == str(then / "model")
    assert main(["rerun", str(run.out)]) == 0
    assert "identical: " in capsys.readouterr().out


def test_a_replay_has_the_precision_of_the_run(run: Run, capsys: Capture) -> None:
    broken = ("loss=ipo_sum", "trainer.learning_rate=1e30", "trainer.max_steps=8", "trainer.max_grad_norm=0")
    assert run(*broken, "model.dtype=bfloat16", "trainer.bf16=true", "trainer.use_cpu=true") == 1
    kept = next(run.out.glob("not-finite-*"))
    capsys.readouterr()
    assert main(["replay", str(kept)]) == 3
    assert "under ipo_sum, weights in bfloat16, computed in bfloat16" in " ".join(capsys.readouterr().out.split())
    for loss, lacks in (("kto", "completions of another prompt"), ("bco", "the loss's running state")):
        assert main(["replay", str(kept), "--loss", loss]) == 2
        assert f"needs what the batch does not have: {lacks}" in capsys.readouterr().err
