"""What watches a run: the figures as JSON lines, a progress bar, and a reference that follows the policy."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback


class MetricsFile(TrainerCallback):
    """Appends every log to a file, one JSON object a line: `step` and the figures by their names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After a resume, drop what will be logged again: later steps, and evaluations of this same step."""
        if not (state.is_world_process_zero and self.path.exists()):
            return
        kept: dict[tuple[float, frozenset[str]], str] = {}
        for line in self.path.read_text().splitlines():
            figures = _figures(line)
            if figures is not None and figures["step"] <= state.global_step:
                kept.setdefault((figures["step"], frozenset(figures)), line)
        tmp = self.path.with_name(f"tmp-{self.path.name}")
        tmp.write_text("".join(line + "\n" for line in kept.values()))
        tmp.replace(self.path)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and logs:
            figures = {k: v if not isinstance(v, float) or math.isfinite(v) else str(v) for k, v in logs.items()}
            with self.path.open("a") as file:
                file.write(json.dumps({"step": state.global_step, **figures}) + "\n")


def _figures(line: str) -> dict[str, Any] | None:
    """What a line says, or None for one cut short by a kill."""
    try:
        figures = json.loads(line)
    except ValueError:
        return None
    return figures if isinstance(figures, dict) and isinstance(figures.get("step"), int | float) else None


class LogLastStep(TrainerCallback):
    """Logs after the last step too, whatever `logging_steps`, so that the figures cover every step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps and args.logging_strategy != "no":
            control.should_log = True


class Progress(TrainerCallback):
    """A rich progress bar with the figures that tell how it goes; lines of text where there is no terminal."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if state.is_world_process_zero:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
            )
            self.bar.start()
            self.task = self.bar.add_task(self.label, total=state.max_steps, completed=state.global_step, figures="")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if self.bar is None or not logs or "loss" not in logs:
            return
        figures = [f"loss {logs['loss']:.4g}"]
        for name, short in (("rewards/accuracies", "accuracy"), ("rewards/margins", "margin")):
            if name in logs:
                figures.append(f"{short} {logs[name]:.3g}")
        self.bar.update(self.task, figures="  ".join(figures))
        if not self.bar.console.is_terminal:
            self.bar.console.print(f"{self.label} {state.global_step}/{state.max_steps}  {'  '.join(figures)}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it was, also after an error."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


class MovingReference(TrainerCallback):
    """Every `every` steps the reference's weights become `alpha` policy plus `1 - alpha` reference."""

    def __init__(self, reference: Any, alpha: float, every: int) -> None:
        self.reference, self.alpha, self.every = reference, alpha, every

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step % self.every == 0:
            with torch.no_grad():
                policy = dict(model.named_parameters())
                for name, weight in self.reference.named_parameters():
                    weight.lerp_(policy[name].to(weight.dtype), self.alpha)
