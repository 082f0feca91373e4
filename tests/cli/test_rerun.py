"""`prefopt rerun`: a run's folder is enough to repeat it, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from prefopt.cli import main
from prefopt.runs import run as running
from prefopt.runs.rerun import compare, folder_for
from tests.cli.conftest import Run

Capture = pytest.CaptureFixture[str]


def test_a_run_is_repeated_bit_for_bit(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """From its folder alone; the second one with another number of loader workers."""
    assert run("loss=dpo", "trainer.eval_strategy=steps", "trainer.eval_steps=2", "seed=3") == 0
    again = run.out.with_name("again")
    assert main(["rerun", str(run.out), "--output-dir", str(again)]) == 0
    assert "identical: " in capsys.readouterr().out
    manifest = json.loads((again / "manifest.json").read_text())
    assert manifest["weights"] == json.loads((run.out / "manifest.json").read_text())["weights"]
    assert manifest["data"]["records"].keys() == {"train", "eval"}
    assert main(["rerun", str(run.out), "--output-dir", str(again)]) == 2, "nothing is written over"
    assert "already has a finished run" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("other", [["batch.max_tokens=100"], ["loss=ipo", "batch.layout=padded"],
                                   ["seed=5"]], ids=str)  # fmt: skip
def test_a_run_is_repeated_in_a_cache_that_another_run_filled(
    other: list[str], run: Run, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """A log-prob of the reference has the same bits, whichever run on the same data computed it."""
    assert run("batch.max_tokens=400") == 0
    monkeypatch.setenv("PREFOPT_CACHE", str(run.out.with_name("cache")))
    assert run(*other, f"output_dir={run.out}-other") == 0
    again = run.out.with_name("again")
    assert main(["rerun", str(run.out), "--output-dir", str(again)]) == 0
    assert "identical: " in capsys.readouterr().out
    assert json.loads((again / "summary.json").read_text())["reference"]["found"] > 0


@pytest.mark.slow
def test_another_run_is_not_identical_and_the_step_is_named(run: Run, finished: Path) -> None:
    assert run("seed=1", f"output_dir={run.out}-1") == 0
    assert run("trainer.dataloader_num_workers=1", f"output_dir={run.out}-workers") == 0
    assert compare(finished, run.out.with_name("out-workers")).identical, "loader workers change nothing"
    other = compare(finished, run.out.with_name("out-1"))
    assert not other.identical
    # at step 1 both are log 2, up to rounding
    assert any(line.startswith("step 2: loss: ") for line in other.differences)
    assert "the weights in final/ differ" in other.differences


def test_what_cannot_be_repeated_is_refused(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rerun", str(tmp_path / "nothing")]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err
    folder = tmp_path / "half"
    folder.mkdir()
    (folder / "summary.json").write_text('{"steps": 1}')
    for text, says in [
        ("[1, 2]", "is not a run's configuration"),
        ("loss: {name: dpo}", "model.path has no value"),
        ("loss: {name: dpoo}\nseed: 0\ntrainer: {}\n", "did you mean 'dpo'"),
        ("loss: {name: dpo, beta: much}\nseed: 0\ntrainer: {}\n", "loss.beta is a number, not 'much'"),
        ("loss: {name: dpo}\nseed: 0\ntrainer: {}\ndata: {path: world}\n", "model.path has no value"),
        ("loss: {_target_: os.system, name: dpo}\nseed: 0\ntrainer: {}\n", "_target_"),
        (
            "loss: {name: dpo}\nseed: 0\ntrainer: {}\ndata: {path: world}\nmodel: {path: m, trust_remote_code: true}\n",
            "give --trust-remote-code if you trust them",
        ),
    ]:
        (folder / "config.yaml").write_text(text)
        assert main(["rerun", str(folder)]) == 2
        assert says in capsys.readouterr().err


def test_a_run_whose_files_have_changed_is_not_repeated(
    run: Run, model_folder: Path, pairs_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    model, data = tmp_path / "model", tmp_path / "pairs.jsonl"
    shutil.copytree(model_folder, model)
    shutil.copy(pairs_file, data)
    assert run(f"model.path={model}", f"data.path={data}") == 0
    data.write_text(data.read_text().replace("even", "odd"))
    assert main(["rerun", str(run.out)]) == 2
    error = capsys.readouterr().err
    assert "the run cannot be repeated: it was made with other records (no option of theirs has changed" in error
    assert f"look at the files of data.path={data}" in error
    shutil.copy(pairs_file, data)
    weights = load_file(model / "model.safetensors")
    save_file({name: weight + 1e-3 for name, weight in weights.items()}, model / "model.safetensors", {"format": "pt"})
    assert main(["rerun", str(run.out)]) == 2
    assert (
        f"made with other starting weights (no option of theirs has changed: look at the files of model.path={model}"
        in (capsys.readouterr().err)
    )


@pytest.mark.slow
def test_an_interrupted_repetition_is_resumed_by_the_same_command(run: Run, capsys: Capture) -> None:
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
    assert f"resuming from {second / 'checkpoint-4'}" in shown
    assert "identical: " in shown
    assert folder_for(run.out) == run.out.with_name("out-rerun-3"), "a finished one is left alone"


@pytest.mark.slow
def test_a_repetition_does_not_resume_another_run(run: Run, finished: Path, capsys: Capture) -> None:
    other = run.out.with_name("other")
    assert run("seed=3", f"output_dir={other}", "trainer.save_strategy=steps", "trainer.save_steps=2") == 0
    (other / "summary.json").unlink()
    before = sorted(other.rglob("*"))
    assert main(["rerun", str(finished), "--output-dir", str(other)]) == 2
    assert f"--output-dir={other} has another run" in capsys.readouterr().err
    assert sorted(other.rglob("*")) == before


@pytest.mark.slow
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
