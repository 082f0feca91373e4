"""Processes of which one is killed, leaves or comes late: `python -m tests.trainer.left FOLDER CASE...`, or one case
under torchrun. A case without a launcher leaves `FOLDER/<case>/codes.json` and what each rank said, `<rank>.err`.
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
from prefopt.folder import checkpoint_to_resume
from prefopt.registry import load
from prefopt.trainer import BatchConfig
from prefopt.trainer import together as watching
from prefopt.trainer.checksums import checksums, files_of, write_checksums
from prefopt.trainer.stopping import Signals
from tests.trainer import tiny
from tests.trainer.together import TRAIN, codes, fork

PROCESSES = 3


class Fate(TrainerCallback):
    """What befalls one rank, in the third step."""

    def __init__(self, case: str) -> None:
        self.case = case

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step != 2:
            return
        fate, _, rank = self.case.rpartition("-")
        if args.process_index != int(rank):
            return
        if fate == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if fate == "refused":
            raise UserError("the third step is one too many")
        if fate == "late":
            time.sleep(8)


def refused(folder: Path) -> None:
    """A checkpoint that was altered: the first process looks, all of them hear of it."""
    checkpoint = folder / "checkpoint-2"
    if os.environ["RANK"] == "0":
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer_state.json").write_text("{}")
        write_checksums(checkpoint, checksums(checkpoint, files_of(checkpoint)), resumable=True)
        (checkpoint / "trainer_state.json").write_text("[]")
    PartialState(cpu=True)
    with watching.Together():
        checkpoint_to_resume(folder, str(checkpoint) if folder.name == "altered" else "auto", lambda line: None)


def run(folder: Path, case: str) -> None:
    """4 steps, while `case` happens."""
    watching.BEAT_SECONDS = 0.5
    if case in ("altered", "none whole"):
        refused(folder)
        return
    PartialState(cpu=True)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    # Signals as in `prefopt.run`: torchrun sends one to the others as soon as it sees that a process is gone.
    with watching.Together(say, patience=2.0) as together, Signals(say) as signals:
        tiny.run(load("dpo"), TRAIN, folder, callbacks=[together, signals, Fate(case)],
                 batch=BatchConfig(records=18, max_tokens=90), max_steps=4)  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    if "RANK" in os.environ:
        try:
            run(folder, sys.argv[2])
        except PrefoptError as error:
            sys.exit(f"prefopt: {error}")
    else:
        for case in sys.argv[2:]:
            home = folder / case
            ended = codes(fork(PROCESSES, functools.partial(run, home, case), home))
            (home / "codes.json").write_text(json.dumps(ended))
