"""`prefopt` itself: verbs, errors in one line, and what is imported before a command line is known to be right."""

from __future__ import annotations

import errno
import json
import resource
import subprocess
import sys

import pytest

from prefopt import cli
from prefopt.cli import main
from prefopt.cli.overrides import check_overrides
from prefopt.cli.verbs import VERBS
from prefopt.config.compose import OBJECTS, register
from prefopt.config.explain import group_choices

SLOW_TO_IMPORT = "torch transformers datasets accelerate peft hydra omegaconf numpy pandas pyarrow scipy matplotlib"
RUN = """
import contextlib, io, json, sys
from prefopt import cli
from prefopt.cli import main
for argv in json.loads(sys.argv[1]):
    error = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
        try:
            code = main(argv)
        except SystemExit as stop:
            code = stop.code
    slow = {name.partition(".")[0] for name in sys.modules} & set(sys.argv[2].split())
    print(json.dumps([code, error.getvalue(), sorted(slow)]))
"""
HELP = [
    [],
    ["--help"],
    ["--version"],
    ["compare"],
    *([verb, "--help"] for verb in VERBS),
    ["train", "-h"],
    ["train", "loss=simpo", "model=a/b", "experiment=smollm2_lora", "--help"],
]
WRONG = [
    (["trian"], "unknown verb 'trian'; did you mean 'train'?"),
    (["train", "loss=simpoo"], "unknown loss 'simpoo'; did you mean 'simpo'?"),
    (["train", "-m", "loss=dpo,simpoo"], "unknown loss 'simpoo'"),
    (["plan", "loss=simpoo"], "unknown loss 'simpoo'"),
    (["compare", "losses=[dpo, simpoo]"], "unknown loss 'simpoo'"),
    (["compare", "losses=[dpo@rollout]"], "unknown loss 'dpo@rollout'; did you mean 'dpo@rollouts'?"),
    (["compare", "losses=[dpoo@rollouts,rloo]"], "unknown loss 'dpoo'; did you mean 'dpo'?"),
    (["compare", "--lst"], "there is no option --lst; did you mean '--list'?"),
    (["train", "lr=1e-5"], "there is no option 'lr'; did you mean trainer.learning_rate=1e-5?"),
    (["train", "trainer.lr=1e-5"], "did you mean trainer.learning_rate=1e-5?"),
    (["train", "--beta", "0.3"], "there is no option '--beta'; did you mean loss.beta=0.3?"),
    (["train", "--learning-rate=1e-6"], "did you mean trainer.learning_rate=1e-6?"),
    (["train", "--fast"], "there is no option --fast; options are KEY=VALUE"),
    (["train", "--lora_r", "8"], "did you mean peft.r=8?"),
    (["train", "bf16=true"], "did you mean trainer.bf16=true?"),
    (["train", "trainer.beta=1"], "did you mean loss.beta=1?"),
    (["train", "loss=simpo", "loss.gamma=1"], "there is no option 'loss.gamma'; did you mean 'loss.gamma_beta_ratio'?"),
    (["plan", "trainer.learning_rat=1"], "did you mean 'trainer.learning_rate'?"),
    (["train", "modle=local"], "there is no option 'modle'; did you mean 'model'?"),
    (["train", "data=wrold"], "unknown data 'wrold'; did you mean 'world'?"),
    (["train", "model=gpt2"], "a file, a folder or a hub id is model.path=..."),
    (["train", "experiment=nope"], "unknown experiment 'nope'"),
    *((argv, "nosuch is not the folder of a run") for argv in
      (["report", "nosuch"], ["rerun", "nosuch"], ["export", "nosuch", "--to", "made"])),
    *(([verb, "nosuch"], "there is no folder nosuch") for verb in ("eval", "chat", "sample")),
    (["pairs", "nosuch"], "which reward?"),
    (["sample", "runs/a", "--temperature", "-1", "--prompt", "x", "lr=1"], "there is no option 'lr'"),
]  # fmt: skip


def test_help_and_common_mistakes_import_no_slow_library() -> None:
    argvs = [*HELP, *(argv for argv, _ in WRONG)]
    call = [sys.executable, "-c", RUN, json.dumps(argvs), SLOW_TO_IMPORT]
    out = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    found = [json.loads(line) for line in out.splitlines()]
    assert len(found) == len(argvs)
    for argv, (code, error, slow) in zip(argvs, found, strict=True):
        assert not slow, argv
        assert code == (0 if argv in HELP else 2), (argv, error)
    for (argv, message), (_, error, _) in zip(WRONG, found[len(HELP) :], strict=True):
        assert message in error, argv
        assert error.count("\n") == 1


def test_help_of_train_has_the_choices_that_hydra_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    shown: dict[str, list[str]] = {}
    for line in capsys.readouterr().out.partition("GROUP=CHOICE:\n")[2].splitlines():
        group, *choices = line.split()
        if line.startswith(" " * 14):  # goes on
            shown[next(reversed(shown))] += [group, *choices]
        else:
            shown[group] = choices
    register()
    assert set(shown) == {*OBJECTS, "trainer", "sweep", "world", "experiment"}
    for group in (*OBJECTS, "trainer", "sweep", "world"):
        assert set(shown[group]) == set(group_choices(group)), group
    assert {"compat/trl_dpo", "sft_then_dpo"} <= set(shown["experiment"])


def test_losses_of_a_sweep_and_of_presets_are_left_to_hydra() -> None:
    """A sweep's functions are not names, and a folder of presets may add losses."""
    check_overrides("train", ["-m", "loss=glob(*po)"])
    check_overrides("train", ["--config-dir", "presets", "loss=mine"])
    check_overrides("train", ["--config-dir", "presets", "data=mine", "+data.more=1"])
    check_overrides("train", ["experiment=file.yaml", "loss.gamma=1", "hydra.job.chdir=false", "stages.sft.loss.x=1"])
    check_overrides(
        "train", ["-m", "data=glob(*)", "model=world,org/name", "~peft", "+trainer.x=1", "hydra/launcher=x"]
    )


def test_usage_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    usage = capsys.readouterr().out
    assert all(f"\n  {verb} " in usage for verb in VERBS)


def test_an_error_shows_no_secret_and_no_control_character(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_API_KEY", "s3cret-value-of-a-key")
    assert main(["s3cret-value-of-a-key\x1b[2J"]) == 2
    error = capsys.readouterr().err
    assert "s3cret" not in error
    assert "[hidden]" in error
    assert "\x1b" not in error
    assert "\\x1b[2J" in error


def test_tracebacks_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFOPT_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unknown verb"):
        main(["trian"])


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device; free some space"),
        (OSError(errno.EACCES, "Permission denied", "a/b"), 1, "a/b'; give another folder"),
        (OSError(errno.EIO, "Input/output error", "a/b"), 1, "Input/output error: 'a/b'\n"),
        (OSError(errno.ELOOP, "a symbolic link", "a/b"), 2, "a/b'; give another name"),
        (MemoryError(), 1, "MemoryError; there is too little memory"),
        (ImportError("libtorch.so: failed to map segment from shared object"), 1, "too little memory"),
    ],
)
def test_what_the_machine_lacks_is_said_in_one_line(
    error: Exception, code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(verb: str, argv: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "_run", fail)
    assert main(["doctor"]) == code
    shown = capsys.readouterr().err
    assert says in shown
    assert shown.count("\n") == 1
    assert ("space" in shown) == (getattr(error, "errno", None) == errno.ENOSPC)


def test_a_limit_that_no_library_can_be_loaded_under_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (400_000 << 10, -1))
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == (
        "prefopt: `ulimit -v` allows 400000 KiB of memory, too little for the libraries that prefopt loads: allow "
        "2097152 or more\n"
    )


def test_wrong_arguments_show_no_secret_and_no_control_character(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_API_KEY", "s3cret-value-of-a-key")
    with pytest.raises(SystemExit):
        main(["rerun", "runs/a", "s3cret-value-of-a-key", "\x1b[2J"])
    error = capsys.readouterr().err
    assert "s3cret" not in error
    assert "[hidden]" in error
    assert "\x1b" not in error


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sample", "m", "--count", "-1"], "--count: -1 must be at least 1"),
        (["sample", "m", "--max-new-tokens", "0"], "--max-new-tokens: 0 must be at least 1"),
        (["sample", "m", "--temperature", "nan"], "--temperature: nan must be at least 0"),
        (["sample", "m", "--seed", "-1"], "--seed: -1 must be at least 0"),
        (["chat", "m", "--seed", "x"], "--seed: invalid number value: 'x'"),
        (["demo", "--seed", "-1"], "--seed: -1 must be at least 0"),
        (["plan", "--records", "0"], "--records: 0 must be at least 1"),
        (["reference", "prune", "--older-than", "-3"], "--older-than: -3 must be at least 0"),
        (["import", "trl", "c.yaml", "--processes", "0"], "--processes: 0 must be at least 1"),
    ],
)
def test_a_number_out_of_its_range_is_refused(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
