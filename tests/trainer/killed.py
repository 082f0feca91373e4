"""Runs that are killed in the middle of writing a checkpoint: `python -m tests.trainer.killed FOLDER LOSS STEP`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from prefopt.trainer import PreferenceTrainer, checkpoints
from tests.trainer.test_checkpoints import DATA, loss_and_options
from tests.trainer.tiny import run

# The place of death -> the function that is not survived: before the weights are written, between the files, after the
# last of them, before the folder gets its name.
PLACES: dict[str, tuple[Any, str]] = {
    "weights": (PreferenceTrainer, "save_model"),
    "optimizer": (PreferenceTrainer, "_save_optimizer_and_scheduler"),
    "extras": (PreferenceTrainer, "_save_extras"),
    "rename": (checkpoints, "_flush"),
}


def deadly(function: Callable[..., Any], now: Callable[[], bool]) -> Callable[..., Any]:
    def called(*args: Any, **kw: Any) -> Any:
        if now():
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kw)

    return called


def train_and_die(folder: Path, name: str, step: int, place: str) -> None:
    """SIGKILL in the save of `step`."""
    saving = [0]
    save = PreferenceTrainer._save_checkpoint

    def counted(trainer: Any, *args: Any) -> None:
        saving[0] = trainer.state.global_step
        save(trainer, *args)

    PreferenceTrainer._save_checkpoint = counted  # type: ignore[method-assign]
    home, attribute = PLACES[place]
    setattr(home, attribute, deadly(getattr(home, attribute), lambda: saving[0] == step))
    loss, options = loss_and_options(name)
    run(loss, DATA, folder, **options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for place in PLACES:
        child = os.fork()
        if child == 0:
            train_and_die(Path(sys.argv[1]) / place, sys.argv[2], int(sys.argv[3]), place)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status), f"{place}: the run was not killed"
        assert os.WTERMSIG(status) == signal.SIGKILL
