"""Callbacks of a run: its figures as JSON lines, and what waits for training to begin."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from prefopt.common.files import open_to_append, write_text
from prefopt.common.redact import redacted
from prefopt.train.sources.rollouts import Rollout


class MetricsFile(TrainerCallback):
    """Appends every log to a file, one JSON object a line: `step` and the figures by their names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._before: list[str] | None = []  # lines of this run from before its training

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After a resume, drop what will be logged again: later steps, evaluations of this same step, the end. A run
        that starts anew drops all that an earlier attempt left."""
        own, self._before = self._before or [], None
        if not (state.is_world_process_zero and self.path.exists()):
            return
        if not state.global_step:
            self._replace(own)
            return
        kept: dict[tuple[float, frozenset[str]], str] = {}
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            figures = _figures(line)
            if figures is not None and "train_runtime" in figures:
                break  # the end of training, which comes again, and what was measured after it
            if figures is not None and figures["step"] <= state.global_step:
                kept.setdefault((figures["step"], frozenset(figures)), line)
        self._replace(kept.values())

    def _replace(self, lines: Iterable[str]) -> None:
        write_text(self.path, "".join(line + "\n" for line in lines))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and logs:
            figures = {k: v if not isinstance(v, float) or math.isfinite(v) else str(v) for k, v in logs.items()}
            line = json.dumps({"step": state.global_step, **figures})
            with open_to_append(self.path) as file:
                file.write(line + "\n")
            if self._before is not None:
                self._before.append(line)


def _figures(line: str) -> dict[str, Any] | None:
    """What a line says, or None for one cut short by a kill."""
    try:
        figures = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return figures if isinstance(figures, dict) and isinstance(figures.get("step"), int | float) else None


class RolloutsFile(TrainerCallback):
    """Appends the first samples of every rollout to a file, one JSON object a text: the step that learns from it first,
    the step whose weights drew it, its prompt, its reward, whether it ended, and its advantage where the loss has one
    for each text.
    """

    PROMPTS = 4  # of a rollout

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After a resume, drop what will be drawn again."""
        if state.is_world_process_zero and self.path.exists():
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if (row := _figures(line)) is not None and row["step"] <= state.global_step]
            write_text(self.path, "".join(line + "\n" for line in kept))

    def add(self, rollout: Rollout) -> None:
        """Append the first samples of a rollout; a run of wandb gets them as a table, with the figures of the step."""
        count, given = rollout.rewards.shape[1], rollout.advantages
        rows = []
        for place, answer in enumerate(rollout.answers[: self.PROMPTS * count]):
            at = divmod(place, count)
            row = {
                "step": rollout.step,
                "weights": rollout.weights,
                "prompt": answer.prompt_text,
                "text": answer.text,
                "reward": float(rollout.rewards[at]),
                "ended": answer.ended,
                "advantage": None if given is None else float(given[at]),
            }
            rows.append(redacted(row))
        with open_to_append(self.path) as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        wandb: Any = sys.modules.get("wandb")  # where it tracks this run, it is there
        if wandb is not None and getattr(wandb, "run", None) is not None:
            table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
            wandb.run.log({"rollout": table}, commit=False)


class AtBeginning(TrainerCallback):
    """Calls a function when training begins: whatever refuses a resume has had its say."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.action()
