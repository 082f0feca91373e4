"""Bad input and broken runs: one line on stderr that names the option or row and the remedy, and nothing half done."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.cli.conftest import Run

WRONG = [
    ("loss=simpoo", "did you mean 'simpo'?"),
    ("loss.bta=1", "did you mean 'loss.beta'?"),
    ("loss.beta=abc", "loss.beta is a number, not 'abc'"),
    ("loss.beta=-1", "beta=-1.0 is not possible"),
    ("trainer.learning_rat=1", "did you mean 'trainer.learning_rate'?"),
    ("trainer.learning_rate=abc", "trainer.learning_rate is a number, not 'abc'"),
    ("trainer.gradient_accumulation_steps=2", "there is no option 'trainer.gradient_accumulation_steps'"),
    ("trainer.lr_scheduler_type=foo", "trainer.lr_scheduler_type=foo is not one of linear, cosine"),
    ("trainer.learning_rate=-1", "trainer.learning_rate=-1.0 must be at least 0"),
    ("evaluation.texts=-1", "evaluation.texts=-1 must be at least 0"),
    ("evaluation.kl_prompts=-1", "evaluation.kl_prompts=-1 must be at least 0"),
    ("evaluation.max_new_tokens=0", "evaluation.max_new_tokens=0 must be at least 1"),
    ("data.num_proc=0", "data.num_proc=0 must be at least 1, or null to choose by the number of records"),
    ("trainer.adam_beta1=1.5", "trainer.adam_beta1=1.5 must be at least 0 and below 1"),
    ("trainer.optim=adamw_bnb_8bit", "trainer.optim=adamw_bnb_8bit cannot be used: "),
    ("trainer.lr_scheduler_type=cosine_with_min_lr", "trainer.lr_scheduler_type=cosine_with_min_lr cannot be used: "),
    ("trainer.metric_for_best_model=rewards/margin", "nothing reads it; add trainer.eval_strategy=steps"),
    ("modle=local", "did you mean 'model'?"),
    ("data=wrold", "did you mean 'world'?"),
    ("experiment=nope", "unknown experiment 'nope'"),
    ("+foo=1", "there is no option 'foo'"),
    ("+loss.bet=1", "there is no option 'loss.bet'; did you mean 'beta'?"),
    ("+model._target_=os.system", "there is no option 'model._target_'"),
    ("seed=x", "seed is a whole number, not 'x'"),
    ("model.path=/does/not/exist", "cannot load a model from model.path=/does/not/exist"),
    ("model.path=package:no_such_package", "pip install"),
    ("model.dtype=float8", "model.dtype=float8 is not one of"),
    ("data.path=/does/not/exist.jsonl", "no such file or folder"),
    ("batch.layout=forest", "not one of auto, tree, padded"),
    ("batch.max_tokens=3", "more than batch.max_tokens=3"),
    ("batch.records=0", "batch.records=0 must be at least 1"),
    ("resume=/does/not/exist", "there is no checkpoint in that folder"),
    ("data.max_length=3", "no record is left"),
    ("data.template=" + 300 * "x", "data.template is one of"),
    ("~loss", "~loss: every run needs this option"),
    ("~loss=1", "deletion value must be a string"),
    ("experiment=[null]", "these options make no configuration"),
]


@pytest.mark.parametrize(("override", "message"), WRONG, ids=[o[:40] for o, _ in WRONG])
def test_refused_by_name(run: Run, capsys: pytest.CaptureFixture[str], override: str, message: str) -> None:
    assert run(override) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (run.out / "final").exists()


def write(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "given.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def good(i: int) -> dict[str, str]:
    return {"prompt": f"Question {i}?", "chosen": f"Yes {i}.", "rejected": f"No {i}."}


def test_wrong_columns(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"data.path={write(tmp_path, {'foo': 'a', 'bar': 'b'})}") == 2
    error = capsys.readouterr().err
    assert "foo" in error
    assert "data.fields" in error or "data.schema" in error


def test_empty_file(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"data.path={write(tmp_path)}") == 2
    assert "given.jsonl" in capsys.readouterr().err


def test_bad_rows_are_counted_and_listed(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty completion, two equal sides, a prompt over the limit: each a rejection with its row and reason."""
    bad = [
        {"prompt": "Empty?", "chosen": "", "rejected": "No."},
        {"prompt": "Same?", "chosen": "Yes.", "rejected": "Yes."},
        {"prompt": "Long? " * 400, "chosen": "Yes.", "rejected": "No."},
    ]
    path = write(tmp_path, *map(good, range(20)), *bad)
    assert run(f"data.path={path}", "data.eval_records=4", "data.max_length=64") == 0
    rejected = [json.loads(line) for line in (run.out / "rejections.jsonl").read_text().splitlines()]
    assert [r["source"].rsplit(":", 1)[-1] for r in rejected] == ["20", "21", "22"] or len(rejected) == 3
    assert len({r["reason"] for r in rejected}) == 3
    assert all(r["detail"] for r in rejected)
    assert "3 rejected" in capsys.readouterr().out
    counts = json.loads((run.out / "summary.json").read_text())["counts"]
    assert counts["rows"] == 23
    assert counts["train"] + counts["eval"] == 20


def test_a_loss_that_does_not_fit_the_data(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"Q{i}?", "completion": f"A{i}.", "label": i % 2 == 0} for i in range(20)]
    assert run(f"data.path={write(tmp_path, *rows)}", "loss=dpo", "data.eval_records=0") == 2
    assert "unpaired" in capsys.readouterr().err


def test_a_nan_loss_stops_with_the_records(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("loss=ipo_sum", "trainer.learning_rate=1e30", "trainer.max_steps=8", "trainer.max_grad_norm=0") == 1
    error = capsys.readouterr().err
    assert "records" in error
    assert error.count("\n") == 1
    assert not (run.out / "summary.json").exists()


def test_a_folder_that_cannot_be_written(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("output_dir=/proc/nothing/can/be/here") == 1
    error = capsys.readouterr().err
    assert "/proc/nothing" in error
    assert "give another folder" in error
    assert error.count("\n") == 1


def test_a_path_that_is_not_possible(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file where a folder must be, a name that is too long: no disk is full."""
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / ("a" * 300)):
        assert run(f"output_dir={place}") == 2
        assert "give another name or folder" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/sys").is_dir(), reason="root may write everywhere")
def test_a_read_only_folder_is_one_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the kernel's, which is not even root's to write."""
    assert run("output_dir=/sys/kernel/here") == 1
    error = capsys.readouterr().err
    assert "/sys/kernel/here" in error
    assert "give another folder" in error
    assert error.count("\n") == 1


def test_weights_that_the_last_update_broke_end_the_run(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("trainer.max_steps=1", "trainer.learning_rate=1e38") == 1
    error = capsys.readouterr().err
    assert "lower trainer.learning_rate" in error
    assert error.count("\n") == 1
    assert not (run.out / "final").exists()
    assert not (run.out / "summary.json").exists()
