"""Secrets are written nowhere, and control characters reach no terminal."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from prefopt.cli import main
from prefopt.common.files import write_json, write_lines
from prefopt.common.redact import HIDDEN, redacted
from tests.cli.conftest import Run


def test_secrets_are_written_nowhere(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token in the environment, and one in options and names, in a run that ends and in one that fails."""
    token, key = "hf_" + "aB3" * 12, "s3cret-value-of-a-key"
    monkeypatch.setenv("MY_API_KEY", key)
    name = f"reference_folder={run.out.parent}/run-{key}-{token}"
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


SECRETS = ('quoted-"secret"-\\value', "pässwörd-of-mine-漢字", " ".join(["a long secret with spaces"] * 8))


@pytest.mark.parametrize("secret", SECRETS)
def test_secrets_that_a_format_escapes_are_hidden(
    secret: str, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_SECRET", secret)
    quoted = secret.replace('"', '\\"')
    option = f'reference_folder="run {quoted} end"'
    monkeypatch.setattr(sys, "argv", ["prefopt", "train", option])
    assert run(option, "trainer.max_steps=1", "evaluation.texts=1", "evaluation.kl_prompts=0") == 0
    assert yaml.safe_load((run.out / "config.yaml").read_text())["reference_folder"] == f"run {HIDDEN} end"
    command = json.loads((run.out / "manifest.json").read_text())["command"]
    assert HIDDEN in command
    assert command.startswith("prefopt train ")
    parts = ("quoted", "\\value", "sswörd", "u00e4ssw", "with spaces")
    assert not [part for part in parts if part in command]
    assert not [part for part in parts if part in (run.out / "config.yaml").read_text()]
    write_json(run.out / "x.json", {"texts": [secret, 3, None], secret: "name"})
    write_lines(run.out / "x.jsonl", [{"text": f"{secret}!"}])
    assert json.loads((run.out / "x.json").read_text()) == {"texts": [HIDDEN, 3, None], HIDDEN: "name"}
    assert json.loads((run.out / "x.jsonl").read_text()) == {"text": f"{HIDDEN}!"}
    assert redacted((secret, 1.5, True)) == [HIDDEN, 1.5, True]


def test_control_characters_in_names_reach_no_terminal(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data.path='/nothing/\x1b[2Jgone.jsonl'") == 2
    shown = capsys.readouterr()
    assert "\x1b" not in shown.err
    assert "\\x1b[2Jgone" in shown.err


def test_an_error_of_the_system_shows_no_secret(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "s3cret-value-of-a-key")
    sweep = f"{run.out}-several"
    for folder in (run.out, Path(sweep, "0-dpo")):
        (folder / ".lock").mkdir(parents=True)
    for more in ([], ["-m", f"hydra.sweep.dir={sweep}"]):
        assert main(["train", *run.given, *more, "reference_folder=run-s3cret-value-of-a-key"]) == 2
        shown = capsys.readouterr()
        assert "s3cret" not in shown.out + shown.err
        assert "Is a directory" in shown.err.splitlines()[-1]
        assert "give another name or folder" in shown.err.splitlines()[-1]
        if not more:
            assert shown.err.count("\n") == 1
