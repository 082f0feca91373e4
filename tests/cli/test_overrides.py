"""No verb accepts an option of a run that it then ignores: what it reads is what it declares."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from prefopt.cli import loading, main
from prefopt.cli.overrides import OF_A_RUN, READS, VERBS, check_files, check_overrides
from prefopt.config.options import CLASSES, group_options, root_keys
from prefopt.config.run_config import RunConfig
from prefopt.errors import UserError

OPTIONS = [*root_keys(), *(option.name for group in CLASSES for option in group_options(group)), "loss.beta"]


@pytest.mark.parametrize("verb", READS)
def test_every_option_is_read_or_refused(verb: str) -> None:
    name, *flags = verb.split()
    assert name in VERBS
    assert (name in OF_A_RUN) == bool(flags)
    given = [*flags, "model"]
    for option in OPTIONS:
        if any(fnmatch(option, pattern) for pattern in READS[verb]):
            check_overrides(name, [*given, f"{option}=null"])
            continue
        with pytest.raises(UserError, match=f"{option}: `prefopt {verb}` does not read it .*; leave it out"):
            check_overrides(name, [*given, f"{option}=null"])


def test_files_and_a_verbs_own_options_are_no_options_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("seed=1").touch()
    check_overrides("data", ["check", "seed=1"])
    check_overrides("eval", ["model", "against=other", "rewardbench=file.jsonl"])
    check_overrides("sample", ["model", "num_generations=4"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["model=modle"], "unknown model 'modle'; did you mean 'model'"),
        (["data="], "data= has no value; choose from: auto, .*a file, a folder or a hub id is data.path="),
        (["--loss", "dpo"], "there is no option '--loss'; did you mean loss=dpo"),
    ],
)
def test_what_was_meant(argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    Path("plain.jsonl").touch()
    with pytest.raises(UserError, match=message):
        check_overrides("train", argv)


@pytest.mark.parametrize(
    ("verb", "argv", "message"),
    [
        ("train", ["data=plian.jsonl"], "no such file or folder: plian.jsonl; did you mean 'plain.jsonl'"),
        ("plan", ["data.path=sets/plian.jsonl.gz"], "folder: sets/plian.jsonl.gz; did you mean 'sets/plain.jsonl.gz'"),
        ("train", ["-m", "data=plain.jsonl,plian.jsonl"], "no such file or folder: plian.jsonl"),
        ("train", ["dpo"], "'dpo' is not a setting: write KEY=VALUE; did you mean loss=dpo"),
        ("plan", ["loss=dpo", "plain.jsonl"], "did you mean data=plain.jsonl"),
        ("train", ["loss=dpo", "./sets"], "did you mean model=./sets"),
        ("train", ["--config-dir", "sets", "loss=dpo"], None),
        ("data", ["check", "plian.jsonl"], "no such file or folder: plian.jsonl"),
        ("data", ["check", "plain.jsonl", "data.path=owner/set", "--html", "page.json"], None),
        ("train", ["data.path=${oc.env:SETS}/pairs.jsonl"], None),
        ("train", ["data=plian.jsonl", "--cfg", "job"], None),
        ("train", ["-m", "data=plain.jsonl,owner/set.name"], None),
    ],
)
def test_files_that_do_not_exist_or_have_no_key(
    verb: str, argv: list[str], message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sets").mkdir()
    for file in ("plain.jsonl", "sets/plain.jsonl.gz"):
        Path(file).touch()
    with pytest.raises(UserError, match=message) if message else nullcontext():
        check_files(verb, argv)


class Recorder:
    """Passes a configuration on, and notes which options are read; `data` and `loss` are read as a whole."""

    def __init__(self, config: Any, seen: set[str], prefix: str = "") -> None:
        self._config, self._seen, self._prefix = config, seen, prefix

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._config, name)
        if dataclasses.is_dataclass(value) and name not in ("data", "loss") and not self._prefix:
            return Recorder(value, self._seen, f"{name}.")
        self._seen |= {"batch.max_tokens"} if name == "budget" else {self._prefix + name}
        return value


def test_eval_reads_what_it_declares(
    model_folder: Path, pairs_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: set[str] = set()
    made = loading.configuration

    def recorded(name: str, overrides: Any) -> RunConfig:
        config: Any = Recorder(made(name, overrides), seen)
        return config  # type: ignore[no-any-return]

    monkeypatch.setattr(loading, "configuration", recorded)
    words = [f"against={model_folder}", f"data.path={pairs_file}", "evaluation.max_new_tokens=2", "loss=dpo"]
    assert main(["eval", str(model_folder), *words]) == 0
    assert seen - {"source"} == set(READS["eval"]) - {"data.*"}  # source: the kind of data, which other verbs set
    capsys.readouterr()
