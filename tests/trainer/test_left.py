"""One of several processes is killed, leaves or comes late: the others say whom they waited for, and do not hang."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

from tests.trainer.test_processes import launch, python

MINUTE = 60.0  # that the others may take to leave
START = 60.0  # that three processes may take to get so far


def test_the_others_leave_and_say_why(tmp_path: Path) -> None:
    cases = ("killed-1", "killed-0", "refused-2", "late-1", "altered", "none whole")
    done = python("tests.trainer.left", str(tmp_path), *cases, timeout=START + len(cases) * MINUTE)
    assert done.returncode == 0, done.stderr[-4000:]
    ended = {case: json.loads((tmp_path / case / "codes.json").read_text()) for case in cases}
    said = {case: [(tmp_path / case / f"{r}.err").read_text() for r in range(3)] for case in cases}

    assert ended["killed-1"] == [1, -signal.SIGKILL, 1]
    for rank in (0, 2):
        assert re.search(rf"rank {rank} of 3 cannot go on \(step 3.*\): rank 1 \(process \d+ on .*\) was killed or has "
                         "crashed; start the same command again", said["killed-1"][rank])  # fmt: skip
        assert "Traceback" not in said["killed-1"][rank]

    # The first process keeps the store: with it, the notes of the others are gone as well.
    assert ended["killed-0"] == [-signal.SIGKILL, 1, 1]
    for rank in (1, 2):
        assert re.search(rf"rank {rank} of 3 cannot go on .*: rank [0-2] ", said["killed-0"][rank])

    assert ended["refused-2"] == [1, 1, 2]
    assert "rank 0 of 3 cannot go on (step 3" in said["refused-2"][0]
    assert "rank 2 has left: the third step is one too many" in said["refused-2"][0]

    assert ended["late-1"] == [0, 0, 0]
    # The lowest rank that waits speaks, once; on a loaded machine that may be either of the two.
    waits = r"rank [02] of 3 waits in (all_reduce|broadcast) \(step 3, micro-batch \d+\) for \d+ s; ranks? [0-2, ]*ha"
    late = r".* not arrived: .*rank 1 is at (after step 2|step 3, micro-batch 1)"
    assert re.search(waits + late, said["late-1"][0] + said["late-1"][2])

    # What the first process finds wrong with a checkpoint, no process loads.
    assert ended["altered"] == ended["none whole"] == [2, 2, 2]
    for rank in range(3):
        assert "trainer_state.json was altered; take another checkpoint" in said["altered"][rank]
        assert "has checkpoints, but none that can be resumed from" in said["none whole"][rank]


def test_under_torchrun_the_reason_is_told_too(tmp_path: Path) -> None:
    done = launch(2, "tests.trainer.left", str(tmp_path), "killed-1")
    assert done.returncode != 0
    assert re.search(r"prefopt: rank 0 of 2 cannot go on .*: rank 1 .*was killed or has crashed", done.stderr)
