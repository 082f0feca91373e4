"""Several processes do what one does: losses, weights, held-out figures, checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.train import processes as together
from tests.train import tiny

ROOT = Path(__file__).resolve().parents[2]
STEPS = 20
# plain; coupled with mismatched completions; coupled; coupled with state; per token with statistics of the vocabulary;
# a reference that moves; only one side of a pair; fewer records than processes; own texts, a value model, an opponent
RUNS = ("dpo", "kto", "aot", "bco", "tdpo2", "epsilon_dpo", "tr_dpo", "sft", "dpo@1", "kto@1", "grpo", "dpo+own", "ppo",
        "xpo+own")  # fmt: skip
# A covering set; `python -m tests.train.matrix FOLDER` runs all.
ON_TWO = ("dpo+fsdp", "kto+fsdp+lora+padded", "aot+lora", "epsilon_dpo+fsdp+padded")
ON_FOUR = ("kto+padded", "aot+fsdp")


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *sys.path])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def python(*arguments: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout)


def launch(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """torchrun of a module of the tests; torchrun chooses the port."""
    return python("torch.distributed.run", f"--nproc-per-node={processes}", "--standalone", "--local-addr=127.0.0.1",
                  "-m", *arguments)  # fmt: skip


def same(folder: Path, run: str, report: dict[str, Any], kept: tiny.Run, processes: int) -> None:
    """What several processes left is what one did: relative differences of figures, and the largest difference of any
    weight, below 1e-6. The model is in float64, where sums in another order differ by 1e-15; Adam, which divides by
    the root of a mean square, enlarges that by 1e8 at most where it has only its epsilon to divide by."""
    other = json.loads((folder / f"{run}.json").read_text())
    wrapper = "FSDPPolicy" if "fsdp" in run else "DistributedDataParallel"
    assert (other["processes"], other["wrapper"]) == (processes, wrapper)
    # those of whitened advantages are what is left of terms that cancel
    assert other["losses"] == pytest.approx(report["losses"], rel=1e-6, abs=1e-8), run
    for part in ("last", "before", "after"):
        assert other[part] == pytest.approx(report[part], rel=1e-6, abs=1e-6), (run, part)
    assert tiny.apart(load_file(folder / f"{run}.safetensors"), together.whole(kept)) < 1e-6, run


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    done = launch(2, "tests.train.processes", str(tmp_path), *RUNS)
    assert done.returncode == 0, done.stderr[-4000:]
    for run in RUNS:
        report, kept = together.train(run, tmp_path / "one")
        same(tmp_path, run, report, kept, 2)
        other = json.loads((tmp_path / f"{run}.json").read_text())
        assert (other["fillers"] > 0) == ("@1" in run)
        if other["scored"]:  # 3 steps of 5 prompts with 4 texts each
            assert other["scored"] == [3 * 3 * 4, 3 * 2 * 4], "each scores the texts that it drew"


@pytest.mark.slow
def test_twenty_steps_whatever_shards_and_processes_and_a_checkpoint_of_two_goes_on_on_four_and_on_one(
    tmp_path: Path,
) -> None:
    from_two = str(tmp_path / "2")
    groups = [
        [2, {"steps": STEPS, "save": 10}, ON_TWO],
        [4, {"steps": STEPS}, ON_FOUR],
        [4, {"steps": STEPS, "resume": "checkpoint-10", "out": from_two}, ("dpo+fsdp", "aot+lora")],
        # With shards what was written without.
        [4, {"steps": STEPS, "resume": "aot+lora:checkpoint-10", "out": from_two}, ("aot+lora+fsdp",)],
    ]
    done = python("tests.train.processes", str(tmp_path), "--groups", json.dumps(groups[:2]))
    assert done.returncode == 0, done.stderr[-4000:]
    one = {}
    for processes, runs in ((2, ON_TWO), (4, ON_FOUR)):
        for run in runs:
            plain = run.replace("+fsdp", "")
            one[plain] = together.train(plain, tmp_path / "one", steps=STEPS)
            same(tmp_path / str(processes), run, *one[plain], processes)
    done = python("tests.train.processes", str(tmp_path), "--groups", json.dumps(groups[2:]))
    assert done.returncode == 0, done.stderr[-4000:]
    for run in ("dpo+fsdp", "aot+lora", "aot+lora+fsdp"):
        same(tmp_path / "2", run, *one[run.replace("+fsdp", "")], 4)
    for run, checkpoint in (("aot+lora", "at-aot+lora"), ("dpo", "at-dpo+fsdp")):
        resume = tmp_path / "2" / checkpoint / "checkpoint-10"
        report, kept = together.train(run, tmp_path / "again", steps=STEPS, resume=resume)
        assert report["losses"] == pytest.approx(one[run][0]["losses"], rel=1e-6)
        assert tiny.apart(kept.weights, one[run][1].weights) < 1e-6
