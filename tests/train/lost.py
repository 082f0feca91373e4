"""Runs that lose one of their processes: `python -m tests.train.lost FOLDER CASE...`, or one case under torchrun.

A case without a launcher leaves `FOLDER/<case>/codes.json`, the exit codes by rank, and each rank's stderr,
`<rank>.err`. The case `killed-1` kills rank 1.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback

from prefopt.errors import PrefoptError, UserError
from prefopt.losses.registry import load
from prefopt.runs.resume import checkpoint_to_resume
from prefopt.train import BatchConfig
from prefopt.train.checksums import checksums, files_of, write_checksums
from prefopt.train.signals import Signals
from tests.train import tiny
from tests.train.processes import TRAIN, fork

PROCESSES = 3
TIMEOUT = 20  # trainer.ddp_timeout in seconds


class Fate(TrainerCallback):
    """Kills, stops or stalls one rank in the third step."""

    def __init__(self, case: str) -> None:
        self.fate, _, rank = case.rpartition("-")
        self.rank = int(rank)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if (state.global_step, args.process_index) != (2, self.rank):
            return
        if self.fate == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fate == "refused":
            raise UserError("the third step is one too many")
        if self.fate == "stalled":
            time.sleep(3600)


def resume(folder: Path) -> None:
    """Resume from a checkpoint that was altered; the first process alone checks it."""
    checkpoint = folder / "checkpoint-2"
    if os.environ["RANK"] == "0":
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer_state.json").write_text("{}")
        write_checksums(checkpoint, checksums(checkpoint, files_of(checkpoint)), resumable=True)
        (checkpoint / "trainer_state.json").write_text("[]")
    PartialState(cpu=True)
    checkpoint_to_resume(folder, str(checkpoint) if folder.name == "altered" else "auto", lambda line: None)


def run(folder: Path, case: str) -> None:
    """Train 4 steps, while `case` happens."""
    if case in ("altered", "none whole"):
        resume(folder)
        return
    with Signals() as signals:  # as `prefopt.runs.run`: torchrun sends SIGTERM to the processes that are left
        tiny.run(load("dpo"), TRAIN, folder, callbacks=[signals, Fate(case)], ddp_timeout=TIMEOUT,
                 batch=BatchConfig(records=18, max_tokens=90), max_steps=4)  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    if "RANK" in os.environ:
        try:
            run(folder, sys.argv[2])
        except PrefoptError as error:
            print(f"prefopt: {error}", file=sys.stderr)
            sys.exit(error.exit_code)
    else:
        for case in sys.argv[2:]:
            home = folder / case
            stalled = int(case[-1]) if case.startswith("stalled") else None
            ended = fork(PROCESSES, functools.partial(run, home, case), home, stalled=stalled)
            (home / "codes.json").write_text(json.dumps(ended))
