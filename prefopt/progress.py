"""How far a run is, for people: a bar, or lines of text where there is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback


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


@contextmanager
def reference_bar(label: str) -> Iterator[Callable[[int], None]]:
    """Gives a progress function for the reference pass; the bar appears with the first call."""
    from rich.progress import Progress

    shown = Progress(transient=True)
    task = shown.add_task(f"{label}: reference log-probs", total=None)

    def advance(count: int) -> None:
        shown.start()
        shown.update(task, advance=count)
        shown.stop()

    yield advance
