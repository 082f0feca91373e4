"""`prefopt replay`: a batch that broke a run, in the run's precision."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from prefopt.cli import main
from tests.cli.conftest import Run

Capture = pytest.CaptureFixture[str]


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


def test_a_replay_in_a_folder_that_has_another_run_now_is_refused(run: Run, capsys: Capture) -> None:
    """By the option, and for altered weights; what is given by hand replaces what was kept."""
    assert run("loss=ipo_sum", "trainer.learning_rate=1e30", "trainer.max_steps=8", "trainer.max_grad_norm=0") == 1
    kept, config = next(run.out.glob("not-finite-*")), run.out / "config.yaml"
    before = config.read_text()
    config.write_text(before.replace("dtype: float32", "dtype: bfloat16"))
    capsys.readouterr()
    assert main(["replay", str(kept)]) == 2
    error = capsys.readouterr().err
    assert f"is not a batch of the run in {run.out} as it is now: it was kept with " in error
    assert "another model.dtype (float32, now bfloat16); give --loss and --model" in error
    config.write_text(before)
    weights = load_file(kept / "model" / "model.safetensors")
    save_file(
        {n: torch.zeros_like(w) for n, w in weights.items()}, kept / "model" / "model.safetensors", {"format": "pt"}
    )
    assert main(["replay", str(kept)]) == 2
    assert "kept with other starting weights; give --loss and --model" in capsys.readouterr().err
    assert main(["replay", str(kept), "--model", str(kept / "model")]) == 0


def test_a_replay_has_the_precision_of_the_run(run: Run, capsys: Capture) -> None:
    broken = ("loss=ipo_sum", "trainer.learning_rate=1e30", "trainer.max_steps=8", "trainer.max_grad_norm=0")
    assert run(*broken, "model.dtype=bfloat16", "trainer.bf16=true", "trainer.use_cpu=true") == 1
    kept = next(run.out.glob("not-finite-*"))
    capsys.readouterr()
    assert main(["replay", str(kept)]) == 3
    assert "under ipo_sum, weights in bfloat16, computed in bfloat16" in " ".join(capsys.readouterr().out.split())
    for loss, lacks in (("kto", "completions of another prompt"), ("bco", "the loss's running state")):
        assert main(["replay", str(kept), "--loss", loss]) == 2
        assert f"needs what the batch does not have: {lacks}" in capsys.readouterr().err
