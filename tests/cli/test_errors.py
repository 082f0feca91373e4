"""Verbs that read models and runs: bad input is one line on stderr, with exit code 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from prefopt.cli import main


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["eval", "{model}"], "on which data?"),
        (["eval", "{model}", "data.path=/no/such.jsonl"], "no such file"),
        (["eval", "{model}", "nonsense"], "is not a setting"),
        (["eval", "/no/such/model", "data.path={pairs}"], "cannot load a model"),
        (["sample", "data.path={pairs}"], "which models?"),
        (["report", "{model}"], "is not the folder of a run"),
        (["eval", "{pairs}"], "is a data file, not a model"),
        (["train", "loss.beta="], "loss.beta= has no value: give a number"),
        (["train", "trainer.max_steps=2.5"], "trainer.max_steps is a whole number, not '2.5'"),
        (["chat", "{model}", "data.template=nope"], "no template 'nope'"),
        (["chat", "{model}", "--system", "be kind"], "has no chat template"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    model_folder: Path, pairs_file: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert main([a.format(model=model_folder, pairs=pairs_file) for a in argv]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [(["train", "loss=simpoo"], "did you mean 'simpo'?"), (["trian"], "did you mean 'train'?")],
)
def test_the_exit_code_of_the_command(argv: list[str], message: str) -> None:
    call = [sys.executable, "-c", "import sys; from prefopt.cli import main; sys.exit(main())"]
    done = subprocess.run([*call, *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
