"""The command itself: signals, full and read-only disks, secrets, control characters."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from prefopt.cli import main
from prefopt.common.redact import printable, redact
from prefopt.train import batches
from prefopt.train.signals import shield_worker
from tests.cli.conftest import Run

SAVED = ("trainer.save_strategy=steps", "trainer.save_steps=2")


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
        f"prefopt: stopped by SIGTERM: checkpoint-{step} is saved; the same command goes on from here"
    )
    assert not (run.out / "summary.json").exists()


def test_sigterm_to_a_worker_that_is_still_starting_ends_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(number: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        shield_worker(number)

    monkeypatch.setattr(batches, "shield_worker", late)
    assert run("trainer.dataloader_num_workers=1") == 0


def test_a_stop_goes_on_with_the_same_command(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Stopped while texts are written after training: nothing is trained again."""
    from prefopt.runs import run as running

    def stop(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "drift_from_start", stop)
        assert run() == 75
    assert "checkpoint-4" in str(list(run.out.iterdir()))
    assert run() == 0
    assert f"resume=auto: going on from {run.out / 'checkpoint-4'}" in capsys.readouterr().out
    steps = [json.loads(line)["step"] for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert steps.count(4) == 4, "the last step, the end of training, the last evaluation, the last texts"
    manifest = json.loads((run.out / "manifest.json").read_text())
    assert [entry["from"] for entry in manifest["resumed"]] == [str(run.out / "checkpoint-4")]


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """No file may grow beyond 6 kB once the first checkpoint is there: the second cannot be written."""
    from prefopt.train import saving

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
    assert "going on from" in capsys.readouterr().out


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/sys").is_dir(), reason="root may write everywhere")
def test_a_read_only_folder_is_one_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the kernel's, which is not even root's to write."""
    assert run("output_dir=/sys/kernel/here") == 1
    error = capsys.readouterr().err
    assert "/sys/kernel/here" in error
    assert "give another folder" in error
    assert error.count("\n") == 1


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


def test_secrets_are_written_nowhere(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token in the environment, and one in options and names, in a run that ends and in one that fails."""
    token, key = "hf_" + "aB3" * 12, "s3cret-value-of-a-key"
    monkeypatch.setenv("MY_API_KEY", key)
    name = f"tracking.run_name=run-{key}-{token}"
    monkeypatch.setattr(sys, "argv", ["prefopt", "train", name])
    assert run(name, f"data.cache_dir={run.out.parent}/cache-{token}") == 0
    assert run(f"data.path=/nothing/{token}/{key}.jsonl", f"output_dir={run.out}-2") == 2
    words = [word for word in run.given if not word.startswith("output_dir")]
    assert main(["train", "-m", *words, name, f"hydra.sweep.dir={run.out}-several"]) == 0
    shown = capsys.readouterr()
    texts = {"stdout": shown.out, "stderr": shown.err}
    for file in [*run.out.rglob("*"), *Path(f"{run.out}-several").rglob("*")]:
        if file.is_file():
            texts[str(file)] = file.read_bytes().decode("utf-8", "replace")
    found = [name for name, text in texts.items() if token in text or key in text]
    assert not found
    assert "[hidden]" in (run.out / "manifest.json").read_text()
    assert "[hidden]" in shown.err


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("https://me:pass@host/x", "https://[hidden]@host/x"),
        ("sk-" + "a" * 24, "[hidden]"),
        ("ghp_" + "A1" * 12 + " and more", "[hidden] and more"),
        ("no token, no tokenizer, hf_hub", "no token, no tokenizer, hf_hub"),
    ],
)
def test_what_counts_as_a_secret(text: str, kept: str) -> None:
    assert redact(text) == kept


def test_control_characters_are_visible_not_obeyed() -> None:
    assert printable("a\x1b[31mred\x07\u202e\n\tb é 漢") == "a\\x1b[31mred\\x07\\u202e\n\tb é 漢"
    assert printable("\ud800") == "\\ud800"


def test_control_characters_in_names_reach_no_terminal(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data.path='/nothing/\x1b[2Jgone.jsonl'") == 2
    shown = capsys.readouterr()
    assert "\x1b" not in shown.err
    assert "\\x1b[2Jgone" in shown.err


def test_what_the_last_texts_give_away_is_in_every_record(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """By default texts are measured after training alone: a sentinel's word on them counts there, too."""
    assert run("sentinels.kl=1e-9", "trainer.learning_rate=1e-2") == 0
    told = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in told if "sentinels/kl" in line] == [4]
    assert "a text away from its start" in capsys.readouterr().out
    assert run("sentinels.kl=1e-9", "sentinels.stop=true", "trainer.learning_rate=1e-2", f"output_dir={run.out}-2") == 3
    assert "the run has ended and is whole" in capsys.readouterr().err
    assert json.loads(Path(f"{run.out}-2", "summary.json").read_text())["sentinels"][0]["sentinel"] == "kl"
