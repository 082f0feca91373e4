"""The command again in a folder that has a run, weights that an update broke, and secrets that a format escapes."""

from __future__ import annotations

import json
import sys

import pytest
import yaml

from prefopt.common.files import write_json, write_lines
from prefopt.common.redact import HIDDEN, redacted
from tests.cli.conftest import Run

SAVED = ("trainer.save_strategy=steps", "trainer.save_steps=2")


def test_weights_that_the_last_update_broke_end_the_run(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("trainer.max_steps=1", "trainer.learning_rate=1e38") == 1
    error = capsys.readouterr().err
    assert "lower trainer.learning_rate" in error
    assert error.count("\n") == 1
    assert not (run.out / "final").exists()
    assert not (run.out / "summary.json").exists()


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


SECRETS = ('quoted-"secret"-\\value', "pässwörd-of-mine-漢字", " ".join(["a long secret with spaces"] * 8))


@pytest.mark.parametrize("secret", SECRETS)
def test_secrets_that_a_format_escapes_are_hidden(
    secret: str, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_SECRET", secret)
    quoted = secret.replace('"', '\\"')
    option = f'tracking.run_name="run {quoted} end"'
    monkeypatch.setattr(sys, "argv", ["prefopt", "train", option])
    assert run(option, "trainer.max_steps=1", "evaluation.texts=0", "evaluation.kl_prompts=0") == 0
    assert yaml.safe_load((run.out / "config.yaml").read_text())["tracking"]["run_name"] == f"run {HIDDEN} end"
    command = json.loads((run.out / "manifest.json").read_text())["command"]
    assert HIDDEN in command
    parts = ("quoted", "value", "sswörd", "u00e4ssw", "with spaces")
    assert not [part for part in parts if part in command]
    assert not [part for part in parts if part in (run.out / "config.yaml").read_text()]
    write_json(run.out / "x.json", {"texts": [secret, 3, None], secret: "name"})
    write_lines(run.out / "x.jsonl", [{"text": f"{secret}!"}])
    assert json.loads((run.out / "x.json").read_text()) == {"texts": [HIDDEN, 3, None], HIDDEN: "name"}
    assert json.loads((run.out / "x.jsonl").read_text()) == {"text": f"{HIDDEN}!"}
    assert redacted((secret, 1.5, True)) == [HIDDEN, 1.5, True]
