"""`prefopt train` stopped by a signal or a full disk, and resumed by the same command."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from prefopt.runs import run as running
from prefopt.train import batches, saving
from prefopt.train.signals import shield_worker
from tests.cli.conftest import Run

SAVED = ("trainer.save_strategy=steps", "trainer.save_steps=2")


@pytest.mark.slow
def test_sigterm_to_all_of_its_processes_leaves_a_checkpoint_and_exit_code_75(run: Run) -> None:
    """As a batch system does it: the command and its loader's worker both get the signal, in the middle of training."""
    options = ["loss=simpo", "trainer.max_steps=100000", "trainer.dataloader_num_workers=1", "evaluation.texts=0"]
    given = [g for g in run.given if not g.startswith("trainer.max_steps")]
    code = "import sys; from prefopt.cli import main; sys.exit(main())"
    command = [sys.executable, "-W", "ignore", "-c", code, "train", *given, *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    metrics = run.out / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and '"learning_rate"' in metrics.read_text()):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 75, err[-2000:]
    step = max(int(p.name.split("-")[1]) for p in run.out.glob("checkpoint-*"))
    assert "SIGTERM: finishing this step, then saving" in out
    assert err.splitlines()[-1] == (
        f"prefopt: stopped by SIGTERM: checkpoint-{step} is saved; the same command resumes from here"
    )
    assert not (run.out / "summary.json").exists()


def test_sigterm_to_a_worker_that_is_still_starting_ends_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(number: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        shield_worker(number)

    monkeypatch.setattr(batches, "shield_worker", late)
    assert run("trainer.dataloader_num_workers=1") == 0


def test_a_stopped_run_is_resumed_by_the_same_command(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Stopped while texts are written after training: nothing is trained again."""

    def stop(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "drift_from_start", stop)
        assert run() == 75
    assert "checkpoint-4" in str(list(run.out.iterdir()))
    assert run() == 0
    assert f"resume=auto: resuming from {run.out / 'checkpoint-4'}" in capsys.readouterr().out
    steps = [json.loads(line)["step"] for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert steps.count(4) == 4, "the last step, the end of training, the last evaluation, the last texts"
    manifest = json.loads((run.out / "manifest.json").read_text())
    assert [entry["from"] for entry in manifest["resumed"]] == [str(run.out / "checkpoint-4")]


def test_a_full_disk_is_one_line_and_the_run_is_resumed_later(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """No file may grow beyond 6 kB once the first checkpoint is there: the second cannot be written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = saving.save_optimizer

    def full(*given: Any, **kw: Any) -> None:
        if given[3].name == "tmp-checkpoint-4":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        save(*given, **kw)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(saving, "save_optimizer", full)
            assert run(*SAVED) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err
    assert "earlier checkpoints are untouched: free some space and start again" in error
    assert error.count("\n") == 1
    assert run(*SAVED) == 0
    assert "resuming from" in capsys.readouterr().out


def test_a_run_in_use_is_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code = "import sys, time; from pathlib import Path; from prefopt.common.locks import locked_folder\n" \
           "with locked_folder(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", code, str(run.out)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert run() == 2
        other.kill()
    assert f"is in use by process {other.pid} on " in capsys.readouterr().err
    assert run() == 0


def test_a_run_is_resumed_from_a_checkpoint_and_a_finished_one_is_not(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("trainer.save_strategy=steps", "trainer.save_steps=2") == 0
    whole = [m for m in lines(run.out / "metrics.jsonl") if "learning_rate" in m]
    assert run("trainer.save_strategy=steps", "trainer.save_steps=2") == 2
    assert "already has a finished run" in capsys.readouterr().err
    (run.out / "summary.json").unlink()
    shutil.rmtree(run.out / "checkpoint-4")
    assert run("trainer.save_strategy=steps", "trainer.save_steps=2", "resume=never") == 2
    assert run("trainer.save_strategy=steps", "trainer.save_steps=2") == 0
    again = [m for m in lines(run.out / "metrics.jsonl") if "learning_rate" in m]
    assert [m["step"] for m in again] == [1, 2, 3, 4]
    assert [m["loss"] for m in again] == [m["loss"] for m in whole]


def test_a_refused_resume_changes_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a finished run, of one with later checkpoints, and with another option: every file is as it was."""
    assert run(*SAVED) == 0
    early = f"resume={run.out / 'checkpoint-2'}"

    def files() -> dict[str, bytes]:
        return {str(p.relative_to(run.out)): p.read_bytes() for p in run.out.rglob("*") if p.is_file()}

    before = files()
    assert run(*SAVED, early, "trainer.max_steps=6") == 2
    assert "already has a finished run" in capsys.readouterr().err
    assert files() == before
    (run.out / "summary.json").unlink()
    before = files()
    assert run(*SAVED, early) == 2
    assert "has later checkpoints (checkpoint-4)" in capsys.readouterr().err
    assert run(*SAVED, "trainer.optim=sgd", "trainer.learning_rate=2e-3") == 2
    error = capsys.readouterr().err
    assert "another trainer.learning_rate (0.001, now 0.002) and another trainer.optim (" in error
    assert files() == before
    assert run(*SAVED) == 0
    manifest = json.loads((run.out / "manifest.json").read_text())
    assert [entry["from"] for entry in manifest["resumed"]] == [str(run.out / "checkpoint-4")]


@pytest.mark.slow
def test_a_resume_with_other_records_or_weights_is_refused_by_the_option(
    run: Run, model_folder: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the same lengths: another template, another base model under an adapter, a file that has changed."""
    templates, base, data = [tmp_path / f"{name}.jinja" for name in "ab"], tmp_path / "base", tmp_path / "pairs.jsonl"
    for file, mark in zip(templates, "ab", strict=True):
        file.write_text("{% for m in messages %}" + mark + "{{ m.content }}<|im_end|>{% endfor %}")
    shutil.copy(pairs_file, data)
    given = (*SAVED, "peft=lora", f"data.template={templates[0]}", f"data.path={data}")
    assert run(*given) == 0
    (run.out / "summary.json").unlink()
    assert run(*given, "data.max_length=512") == 0, "no record is longer: it is the same run"
    (run.out / "summary.json").unlink()
    capsys.readouterr()
    assert run(*given[:-2], f"data.template={templates[1]}", given[-1]) == 2
    error = capsys.readouterr().err
    assert f"other records (data.template: {templates[0]} (with the digest " in error
    assert f", now {templates[1]} (with the digest " in error
    shutil.copytree(model_folder, base)
    weights = load_file(base / "model.safetensors")
    save_file({name: weight + 1e-3 for name, weight in weights.items()}, base / "model.safetensors", {"format": "pt"})
    assert run(*given, f"model.path={base}") == 2
    assert f"other starting weights (model.path: {model_folder}, now {base})" in capsys.readouterr().err
    data.write_text(data.read_text().replace("even", "evil"))
    assert run(*given) == 2
    assert f"other records (no option of theirs has changed: look at the files of data.path={data})" in (
        capsys.readouterr().err
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
