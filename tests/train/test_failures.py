"""One of several processes is killed, leaves or stalls: the others end with an error instead of waiting forever."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from tests.train.test_processes import launch, python


@pytest.mark.slow
def test_a_run_that_loses_a_process_ends(tmp_path: Path) -> None:
    """Without a launcher that ends them. The deadline is far above `ddp_timeout`, and far below torch's default."""
    cases = ("killed-1", "killed-0", "refused-2", "stalled-1", "altered", "none whole")
    done = python("tests.train.lost", str(tmp_path), *cases)
    assert done.returncode == 0, done.stderr[-4000:]
    said = {case: [(tmp_path / case / f"{r}.err").read_text() for r in range(3)] for case in cases}
    assert {case: json.loads((tmp_path / case / "codes.json").read_text()) for case in cases} == {
        "killed-1": [1, -signal.SIGKILL, 1],
        "killed-0": [-signal.SIGKILL, 1, 1],
        "refused-2": [1, 1, 2],
        "stalled-1": [1, -signal.SIGKILL, 1],
        "altered": [2, 2, 2],
        "none whole": [2, 2, 2],
    }, said
    assert "the third step is one too many" in said["refused-2"][2]
    # What the first process finds wrong with a checkpoint, no process loads.
    for rank in range(3):
        assert "trainer_state.json was altered; take another checkpoint" in said["altered"][rank]
        assert "has checkpoints, but none that can be resumed from" in said["none whole"][rank]


@pytest.mark.slow
def test_torchrun_reports_a_lost_process_and_ends_the_others(tmp_path: Path) -> None:
    done = launch(2, "tests.train.lost", str(tmp_path), "killed-1")
    assert done.returncode == 1, done.stderr[-4000:]
    assert re.search(r"rank +: 1 .*\n +exitcode +: -9", done.stderr), done.stderr[-4000:]
