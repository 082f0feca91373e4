"""Three minutes of the soak, and its verdict on made-up samples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import soak  # noqa: E402

MINUTES = os.environ.get("PREFOPT_SOAK_MINUTES", "3")


@pytest.mark.slow
@pytest.mark.soak
def test_three_minutes_without_growth(tmp_path: Path) -> None:
    """Memory is judged by the lower end of its interval, because a short run has few cycles and its caches still fill.
    A leak of 10 % in three minutes is found; files, threads and processes are exact."""
    out = tmp_path / "soak.json"
    command = [sys.executable, str(BENCHMARKS / "soak.py"), "--minutes", MINUTES, "--save", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert out.exists(), done.stderr[-2000:]
    found = json.loads(out.read_text())["verdict"]
    assert found is not None, done.stdout[-2000:]
    print(json.dumps(found, indent=1))
    for name in soak.COUNTS:
        assert found[name]["ok"], (name, found[name])
    assert found["rss_mib"]["low"] < 0.1, found["rss_mib"]


def samples(**columns: Any) -> list[dict[str, Any]]:
    n = 40
    rng = np.random.default_rng(0)
    level = {"rss_mib": 900.0, "private_mib": 800.0, "files": 12.0, "threads": 4.0, "children": 0.0,
             "tokens_per_s": 4e4, "whole_tokens_per_s": 1e4, "yardstick_s": 0.03}  # fmt: skip
    made = {name: np.full(n, value) * (1 + 0.01 * rng.normal(size=n) * (name not in soak.COUNTS))
            for name, value in level.items()}  # fmt: skip
    made |= {name: made[name] * value for name, value in columns.items()}
    losses = [soak.LOSSES[i % 3] for i in range(n)]
    return [{"minute": 1.5 * i, "loss": losses[i], **{k: float(v[i]) for k, v in made.items()}} for i in range(n)]


RISING = np.linspace(1, 1.1, 40)
FALLING = np.linspace(1, 0.9, 40)
SPIKE = np.where(np.arange(40) == 30, 3.0, 1.0)  # one bad sample is not a leak


@pytest.mark.parametrize(
    ("columns", "broken"),
    [
        ({}, set()),
        ({"rss_mib": RISING}, {"rss_mib"}),
        ({"private_mib": RISING}, {"private_mib"}),
        ({"tokens_per_s": FALLING}, {"throughput"}),
        ({"tokens_per_s": np.where(np.arange(40) % 3 == 1, 2.0, 1.0)}, set()),  # one loss is twice as fast
        ({"files": np.linspace(1, 2, 40)}, {"files"}),
        ({"rss_mib": SPIKE, "tokens_per_s": 1 / SPIKE, "threads": SPIKE}, set()),
    ],
)
def test_verdicts(columns: dict[str, Any], broken: set[str]) -> None:
    """Noise of 1 % causes a slope of at most about half a percent over forty samples; a change of 10 % is found."""
    found = soak.verdict(samples(**columns))
    assert {name for name, row in found.items() if name != "ok" and not row["ok"]} == broken
    assert found["ok"] == (not broken)


def test_change_is_relative_to_the_level() -> None:
    found = soak.verdict(samples(rss_mib=RISING))["rss_mib"]
    assert found["change"] == pytest.approx(0.1 / 1.05, abs=0.015)
    assert found["low"] < found["change"] < found["high"]
