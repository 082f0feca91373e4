"""Two processes do what one does: losses, weights, held-out figures."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.trainer import together

ROOT = Path(__file__).resolve().parents[2]
# plain; coupled with mismatched completions; coupled; coupled with state; per token with statistics of the vocabulary;
# a reference that moves; only one side of a pair; fewer records than processes
RUNS = ("dpo", "kto", "aot", "bco", "tdpo2", "tr_dpo", "sft", "dpo@1", "kto@1")


def launch(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """torchrun of a module of the tests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}",
               "--master-addr=127.0.0.1", f"--master-port={port}", "-m", *arguments]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=400)


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    sharded = [f"fsdp:{name}" for name in ("dpo", "kto", "tdpo2")]
    done = launch(2, "tests.trainer.together", str(tmp_path), *RUNS, *sharded, "resume:bco")
    assert done.returncode == 0, done.stderr[-4000:]
    for run in RUNS:
        report, kept = together.train(run, tmp_path / "one")
        other = json.loads((tmp_path / f"{run}.json").read_text())
        assert (other["processes"], other["wrapper"]) == (2, "DistributedDataParallel")
        assert (other["fillers"] > 0) == ("@1" in run)
        assert other["losses"] == pytest.approx(report["losses"], rel=1e-6), run
        for part in ("last", "before", "after"):
            assert other[part] == pytest.approx(report[part], rel=1e-6, abs=1e-6), (run, part)
        weights = load_file(tmp_path / f"{run}.safetensors")
        assert together.tiny.apart(weights, kept.weights) < 1e-6, run
        if f"fsdp:{run}" in sharded:
            gradients = load_file(tmp_path / f"fsdp:{run}.safetensors")
            size = max(float(g.abs().max()) for g in gradients.values())
            assert together.tiny.apart(gradients, kept.gradients[0]) < 1e-6 * max(1.0, size), run
