"""Runs that are asked to stop: `python -m tests.train.signalled FOLDER`.

Prints one JSON object for each place and signal: the exit code (or minus the signal that ended the process), what was
said, the checkpoint that the next attempt went on from, and what differs at its end from a run never disturbed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from prefopt.engine.reference import table
from prefopt.errors import PrefoptError
from prefopt.losses.registry import load
from prefopt.runs.resume import checkpoint_to_resume
from prefopt.train import PreferenceTrainer, saving, train
from prefopt.train.callbacks import MetricsFile
from prefopt.train.signals import Signals
from prefopt.train.step import Step
from tests.train import kills, tiny

# Place -> whose attribute the signal comes before, in which call, how often.
PLACES: dict[str, tuple[Any, str, int, int]] = {
    "reference": (table, "score", 1, 1),
    "evaluation before": (Step, "evaluate", 1, 1),
    "step": (Step, "micro_batch", 5, 1),
    "save": (saving, "save_optimizer", 1, 1),
    "evaluation": (Step, "evaluate", 5, 1),
    "end": (PreferenceTrainer, "_finish", 0, 1),
    "second": (Step, "micro_batch", 5, 2),
}


def attempt(folder: Path) -> int:
    """As `prefopt.runs.run` does it."""
    told: list[str] = []
    with Signals(told.append) as signals:
        try:
            found = checkpoint_to_resume(folder, "auto", lambda line: None)
            with (folder / "resumed").open("a") as file:
                file.write(f"{found.name if found else 'start'}\n")
            options = kills.OPTIONS | tiny.OPTIONS | {"save_steps": 3, "logging_steps": 2}
            callbacks = [MetricsFile(folder / "metrics.jsonl"), signals]
            train(tiny.model(), load("dpo"), kills.DATA, output_dir=folder, store=folder / "reference", resume=found,
                  callbacks=callbacks, **options)  # fmt: skip
        except PrefoptError as error:
            (folder / "said").write_text("\n".join([*told, str(error)]))
            return error.exit_code
    return 0


def signalled(folder: Path, place: str, number: int) -> int:
    home, name, turn, times = PLACES[place]
    survived = getattr(home, name)
    left = [turn]

    def called(*args: Any, **kw: Any) -> Any:
        left[0] -= 1
        if left[0] == -1:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return survived(*args, **kw)

    setattr(home, name, called)
    return attempt(folder)


def ended(action: Any) -> int:
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = action()
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)


def main(root: Path) -> None:
    whole = root / "whole"
    whole.mkdir(parents=True)
    assert ended(lambda: attempt(whole)) == 0
    for n, place in enumerate(PLACES):
        number = signal.SIGINT if place == "second" or n % 2 else signal.SIGTERM
        folder = root / place
        folder.mkdir()
        code = ended(lambda f=folder, p=place, s=number: signalled(f, p, s))  # type: ignore[misc]
        said = (folder / "said").read_text() if (folder / "said").exists() else ""
        again = ended(lambda f=folder: attempt(f))  # type: ignore[misc]
        print(json.dumps({
            "place": place, "signal": signal.Signals(number).name, "code": code, "said": said, "again": again,
            "resumed": (folder / "resumed").read_text().split()[-1],
            "different": kills.differences(kills.outcome(folder), kills.outcome(whole)),
        }), flush=True)  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
