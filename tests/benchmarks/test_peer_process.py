"""A peer gets its job on standard input and its threads in the environment; how it fails is told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from prefopt.errors import PrefoptError

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import peer_process


def test_a_peer_is_run_with_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_process, "PEERS", tmp_path)
    (tmp_path / "run_echo.py").write_text(
        "import json, os, sys; import memory; print(json.load(sys.stdin)['model'], os.environ['OMP_NUM_THREADS'])"
    )
    (tmp_path / "run_broken.py").write_text("raise ValueError('no such model')")
    assert peer_process.run_peer("echo", {"model": "m", "threads": 3}) == "m 3\n"
    with pytest.raises(PrefoptError, match=r"run_broken.py failed with 1:\n(.|\n)*no such model"):
        peer_process.run_peer("broken", {"threads": 1})
