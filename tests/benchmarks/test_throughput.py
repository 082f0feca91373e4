"""The benchmark of speed repeats what others disturb, keeps lines of other processors, and compares layouts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import cost_tables
import machine
import throughput
from throughput import FULL, METHODS, Bench, Contest

BY_NAME = {contest.name: contest for contest in FULL}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A benchmark whose processes are played: each finds the files of its cache, adds one, and answers at once."""
    made = object.__new__(Bench)
    made.model, made.threads, made.folder, made.runs, made.tries = "model", 1, tmp_path, 2, 3
    made.pairs = tmp_path / "pairs.jsonl"

    def run_peer(program: str, job: dict[str, Any], *, preload: str | None) -> str:
        found = sorted(file.name for file in Path(job["cache"]).iterdir())
        Path(job["cache"], f"{job['method']}-{len(found)}").touch()
        steps = [9.0, *[2.0 if job["method"] == "padded" else 0.5] * (job["steps"] - 1)]
        answer = {"step_s": steps, "total_s": sum(steps), "peak_gib": 1.0, "found": found}
        Path(job["result"]).write_text(json.dumps(answer))
        return ""

    monkeypatch.setattr(throughput, "run_peer", run_peer)
    monkeypatch.setattr(made, "machine", lambda contest, preload: {"gflops_per_s": 100.0, "torch_mm": 100.0})
    return made


def test_a_repeated_process_starts_from_the_same_cache(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = iter([0.5, 0.0, 0.0])
    monkeypatch.setattr(machine.Others, "share", lambda self: next(shares))
    contest = Contest("methods", ("prefopt",), records=2, steps=2, methods=METHODS)
    first = bench.run("prefopt", contest, "dpo", 0, None)
    assert (first["tries"], first["others"], first["found"]) == (2, 0.0, [])
    assert bench.run("prefopt", contest, "ipo", 0, None)["found"] == ["dpo-0"], "of the try that was kept"


def test_eight_completions_as_trees_and_as_rows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.Others, "share", lambda self: 0.2)
    line = bench.contest(BY_NAME["completions_8"], preload=None)
    assert throughput.compared(line) == {"speed_ratio": 4.0, "memory_ratio": 1.0}
    assert (line["others"], line["discarded"], line["runs"]) == (0.2, 2 * 2 * 2, 2)
    result = {"lines": [throughput.compared(line) | line], "setting": {"model": "m", "dtype": "float32", "threads": 1}}
    table = cost_tables.throughput(result)
    assert "| 4.00× |" in table
    assert "20% * |" in table
    assert "took more than 5% of the cores" in table


def test_lines_of_other_processors_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "throughput.json"
    old = [{"contest": "batch_4", "preload": None, "processor": name} for name in ("one", "other")]
    file.write_text(json.dumps({"lines": old}))
    monkeypatch.setattr(throughput, "RESULTS", file)
    new = {"contest": "batch_4", "preload": None, "processor": "other", "runs": 3}
    assert throughput.with_saved([new]) == [old[0], new]
