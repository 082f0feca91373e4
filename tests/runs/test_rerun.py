"""`prefopt rerun` and `prefopt replay`: a run's folder is enough to repeat it, and a broken batch is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefopt.cli import main
from prefopt.runs.rerun import compare
from tests.cli.conftest import Run


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


def test_another_run_is_not_identical_and_the_step_is_named(run: Run) -> None:
    assert run() == 0
    assert run("seed=1", f"output_dir={run.out}-1") == 0
    assert run("trainer.dataloader_num_workers=1", f"output_dir={run.out}-workers") == 0
    assert compare(run.out, run.out.with_name("out-workers")).identical, "loader workers change nothing"
    other = compare(run.out, run.out.with_name("out-1"))
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
        ("loss: {name: dpo, beta: much}\nseed: 0\ntrainer: {}\n", "could not be converted to Float"),
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


def test_a_broken_batch_is_replayed(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("loss=ipo_sum", "trainer.learning_rate=1e30", "trainer.max_steps=8", "trainer.max_grad_norm=0") == 1
    kept = next(run.out.glob("not-finite-*"))
    assert f"prefopt replay {kept} shows the batch again" in capsys.readouterr().err
    assert main(["replay", str(kept)]) == 3
    shown = capsys.readouterr().out
    assert "the batch again, under ipo_sum" in shown
    assert "completions are not finite" in shown
    start = next(g for g in run.given if g.startswith("model.path=")).split("=", 1)[1]
    assert main(["replay", str(kept / "batch.json"), "--model", start]) == 0
    assert "0 of 16 completions are not finite" in capsys.readouterr().out
    assert main(["replay", str(run.out / "config.yaml")]) == 2
