"""Shows the progress of a run: a live bar, plain lines, JSON lines, or only warnings (`progress=...`)."""

from __future__ import annotations

import functools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, TextIO

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from transformers import TrainerCallback

from prefopt.common.escaping_console import Console
from prefopt.common.json_output import finite, json_stream
from prefopt.common.memory_usage import memory_gib
from prefopt.common.processes import is_first_process
from prefopt.common.redact import printable
from prefopt.config.run_config import RunConfig

WARNING = "warning: "
MOST_LINES = 100  # of a whole run in plain mode
REFERENCE_SECONDS = 30  # between two lines about the reference's log-probs in plain mode

# What is shown, by the first name that was logged, and how. A log-ratio is log-prob less the reference's, in nats, on
# the batch: it says where each side goes, and is no KL. A KL is shown where one was measured.
FIGURES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("loss",), "loss {:z.4f}"),
    (("reward",), "reward {:+z.3f}"),
    (("rewards/accuracies", "accuracies/logps"), "accuracy {:.0%}"),
    (("rewards/margins", "margins/logps"), "margin {:+z.3f}"),
    (("kl",), "KL {:z.2f} nats"),
    (("ratios/chosen",), "log-ratio chosen {:+z.2f}"),
    (("ratios/rejected",), "rejected {:+z.2f}"),
    (("tokens_per_second",), "{:,.0f} tokens/s"),
    (("memory_gib",), "{:.2f} GiB"),
)


class RunProgress(TrainerCallback):
    """Prints nothing but warnings, on stderr; its subclasses print more.

    Args:
        label: the name of the run: its method.
        stream: where it prints.
    """

    def __init__(self, label: str, stream: TextIO) -> None:
        self.label, self.stream = label, stream
        self._start_time, self._start_step = time.monotonic(), 0
        self._kl: dict[str, float] = {}  # the last that was measured

    @property
    def console(self) -> Console | None:
        """Where tables for a reader can be printed, if anywhere."""
        return None

    def print(self, line: str) -> None:
        """Print a line; one that begins with "warning: " is a warning."""
        if line.startswith(WARNING):
            self.warn(line.removeprefix(WARNING))
        else:
            self.inform(line)

    def inform(self, line: str) -> None:
        """Print a plain line."""

    def warn(self, line: str) -> None:
        """Print a warning."""
        print(f"{WARNING}{printable(line)}", file=sys.stderr, flush=True)

    @contextmanager
    def reference(self) -> Iterator[Callable[[int, int], None]]:
        """Yield a function to call with the number of records whose reference log-probs became ready, and with that of
        all of them; training records come before held-out ones."""
        yield lambda count, total: None

    def begin(self, step: int, steps: int) -> None:
        """Show that training begins after `step`."""

    def step(self, step: int, steps: int) -> None:
        """Show that a step is done."""

    def log(self, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """Show logged figures of training."""

    def evaluated(self, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """Show logged figures of held-out records: before the first step, during training, and after the last."""

    def close(self) -> None:
        """Leave the terminal as it was, also after an error."""

    # ---- transformers' side

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._start_time, self._start_step = time.monotonic(), state.global_step
        if state.is_world_process_zero:
            self.begin(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.step(state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            self.log(state.global_step, state.max_steps, {**self._kl, **logs, "memory_gib": memory_gib()})
        elif any(name.startswith("eval_") for name in logs):
            self._kl = {"kl": logs["eval_kl"]} if "eval_kl" in logs else self._kl
            self.evaluated(state.global_step, state.max_steps, logs)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.close()

    def seconds_left(self, step: int, steps: int) -> float:
        """The time left at the pace since training began; nan before the first step."""
        done = step - self._start_step
        return (time.monotonic() - self._start_time) / done * (steps - step) if done > 0 else math.nan


class PlainProgress(RunProgress):
    """Prints lines without control characters, for logs and pipes: at most a hundred of them while training."""

    _last_line = -1

    @property
    def console(self) -> Console | None:
        return Console(file=self.stream, no_color=True, force_terminal=False, width=100)

    def inform(self, line: str) -> None:
        print(printable(line), file=self.stream, flush=True)

    def warn(self, line: str) -> None:
        self.inform(f"{WARNING}{line}")

    @contextmanager
    def reference(self) -> Iterator[Callable[[int, int], None]]:
        """Print every half minute how many records are done, and how long the others may take."""
        records, first, began = 0, 0, time.monotonic()
        printed = began

        def advance(count: int, total: int) -> None:
            nonlocal records, first, began, printed
            now = time.monotonic()
            if not 0 < records < total:  # a split begins, with what the store has of it
                records, first, began = 0, count, now
            records += count
            if records > first and now - printed > REFERENCE_SECONDS:
                printed = now
                left = (now - began) / (records - first) * (total - records)
                self.inform(f"reference log-probs: {records:,} of {total:,} records done  left {clock(left)}")

        yield advance

    def log(self, step: int, steps: int, figures: Mapping[str, float]) -> None:
        line = step * MOST_LINES // max(steps, 1)
        if line != self._last_line or step == steps:
            self._last_line = line
            left = self.seconds_left(step, steps)
            time_left = f"  left {clock(left)}" if math.isfinite(left) and step < steps else ""
            self.inform(f"{self.label} {step}/{steps}  {in_words(figures)}{time_left}")

    def evaluated(self, step: int, steps: int, figures: Mapping[str, float]) -> None:
        if 0 < step < steps:  # the first and the last come in the table at the end
            self.inform(f"{self.label} {step}/{steps}  held out: {in_words(_held_out(figures))}")


class RichProgress(RunProgress):
    """Shows a live bar with the latest figures under it."""

    def __init__(self, label: str, stream: TextIO) -> None:
        super().__init__(label, stream)
        self.bar: _Bar | None = None
        self.reference_bar: _Bar | None = None

    @property
    def console(self) -> Console:
        return _console(self.stream)

    def inform(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False)

    def warn(self, line: str) -> None:
        self.console.print(f"{WARNING}{line}", style="yellow", highlight=False, markup=False)

    @contextmanager
    def reference(self) -> Iterator[Callable[[int, int], None]]:
        """Show a bar that comes with the first records and goes when training begins."""
        bar = self.reference_bar = _bar(self.console, transient=True)
        task = bar.add_task("reference log-probs", total=None)

        def advance(count: int, total: int) -> None:
            bar.start()
            if bar.tasks[0].finished or bar.tasks[0].total != total:
                bar.reset(task, total=total)
            bar.update(task, advance=count)

        try:
            yield advance
        finally:
            bar.stop()

    def begin(self, step: int, steps: int) -> None:
        if self.reference_bar is not None:
            self.reference_bar.stop()
        self.bar = _bar(self.console)
        self.bar.start()
        self.task = self.bar.add_task(self.label, total=steps, completed=step)

    def step(self, step: int, steps: int) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=step)

    def log(self, step: int, steps: int, figures: Mapping[str, float]) -> None:
        if self.bar is not None:
            self.bar.figures = in_words(figures)
            self.bar.refresh()

    def evaluated(self, step: int, steps: int, figures: Mapping[str, float]) -> None:
        if 0 < step < steps:  # the first and the last come in the table at the end
            self.inform(f"step {step}, held out: {in_words(_held_out(figures))}")

    def close(self) -> None:
        """Stop the bar and leave its last state standing."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


class JsonProgress(RunProgress):
    """Prints one JSON object a line: `event` is message, warning, begin, log, evaluation or end."""

    _reference_records = 0

    def emit(self, event: str, **content: Any) -> None:
        """Print an event."""
        print(json.dumps({"event": event, **finite(content)}), file=self.stream, flush=True)

    def inform(self, line: str) -> None:
        self.emit("message", text=line)

    def warn(self, line: str) -> None:
        self.emit("warning", text=line)

    @contextmanager
    def reference(self) -> Iterator[Callable[[int, int], None]]:
        """Count the records for the event `begin`."""

        def advance(count: int, total: int) -> None:
            self._reference_records += count

        yield advance

    def begin(self, step: int, steps: int) -> None:
        self.emit("begin", method=self.label, step=step, steps=steps, reference_records=self._reference_records)

    def log(self, step: int, steps: int, figures: Mapping[str, float]) -> None:
        self.emit("log", step=step, steps=steps, seconds_left=self.seconds_left(step, steps), **figures)

    def evaluated(self, step: int, steps: int, figures: Mapping[str, float]) -> None:
        self.emit("evaluation", step=step, steps=steps, **figures)


DISPLAYS = {"rich": RichProgress, "plain": PlainProgress, "quiet": RunProgress, "json": JsonProgress}


def run_progress(mode: str, label: str, stream: TextIO | None = None) -> RunProgress:
    """The display for a run named `label`.

    Args:
        mode: auto (rich on a terminal and in a notebook with ipywidgets, else plain), rich, plain, quiet or json. In a
            distributed run only the first process prints; the others are quiet.
        label: the name of the run: its method.
        stream: where it prints; None: stdout.

    Raises:
        UserError: there is no such mode.
    """
    RunConfig.LIMITS["progress"].check("progress", mode)
    if stream is None:
        stream = json_stream() if mode == "json" else sys.stdout
    if not is_first_process():
        mode = "quiet"
    elif mode == "auto":
        mode = "rich" if stream.isatty() or in_notebook() else "plain"
    return DISPLAYS[mode](label, stream)


def in_notebook() -> bool:
    """Whether a notebook shows what this process prints, and has the widgets of a live bar."""
    return "ipykernel" in sys.modules and find_spec("ipywidgets") is not None


def in_words(figures: Mapping[str, float]) -> str:
    """The figures of a line: `loss 0.6931  accuracy 50%  ...`."""
    shown = []
    for names, form in FIGURES:
        value = next((figures[n] for n in names if isinstance(figures.get(n), int | float)), None)
        if value is not None:
            shown.append(form.format(value))
    return "  ".join(shown)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def _held_out(figures: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix("eval_"): value for name, value in figures.items()}


@functools.cache
def _console(stream: TextIO) -> Console:
    """The one console of a stream: its lines stay above its bar."""
    return Console(file=stream, force_terminal=None if in_notebook() else True)


class _Bar(Progress):
    """A bar with a line of figures under it."""

    figures = ""

    def get_renderables(self) -> Iterator[Any]:
        yield self.make_tasks_table(self.tasks)
        yield Text(f"  {self.figures}", style="dim")


def _bar(console: Console, *, transient: bool = False) -> _Bar:
    return _Bar(
        TextColumn("{task.description}", style="bold"), BarColumn(bar_width=None), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        console=console, expand=True, transient=transient,
    )  # fmt: skip
