"""How a run tells what it does: a live bar, plain lines, JSON lines, or nothing but warnings (`progress=...`)."""

from __future__ import annotations

import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import psutil
import torch
from transformers import TrainerCallback

from prefopt.common.redact import printable
from prefopt.errors import UserError, nearest

MODES = ("auto", "rich", "plain", "quiet", "json")
WARNING = "warning: "
MOST_LINES = 100  # of a whole run in plain mode

# What is shown, by the first name that was logged, and how. A log-ratio is log-prob less the reference's, in nats, on
# the batch: it says where each side goes, and is no KL. A KL is shown where one was measured.
FIGURES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("loss",), "loss {:.4f}"),
    (("rewards/accuracies", "accuracies/logps"), "accuracy {:.0%}"),
    (("rewards/margins", "margins/logps"), "margin {:+.3f}"),
    (("kl",), "KL {:.2f} nats"),
    (("ratios/chosen",), "log-ratio chosen {:+.2f}"),
    (("ratios/rejected",), "rejected {:+.2f}"),
    (("tokens_per_second",), "{:,.0f} tokens/s"),
    (("memory_gib",), "{:.2f} GiB"),
)


def watch(mode: str, label: str, stream: TextIO | None = None) -> Watch:
    """What tells about a run named `label`.

    Args:
        mode: auto (rich on a terminal, else plain), rich, plain, quiet, json. Of several processes the first one tells;
            the others are quiet.
        label: of the run: its method.
        stream: where it is told; stdout.

    Raises:
        UserError: no such mode.
    """
    if mode not in MODES:
        raise UserError(f"progress={mode} is not one of {', '.join(MODES)}{nearest(mode, MODES)}")
    stream = sys.stdout if stream is None else stream
    if not first_process():
        mode = "quiet"
    elif mode == "auto":
        mode = "rich" if stream.isatty() else "plain"
    kinds: dict[str, type[Watch]] = {"rich": RichWatch, "plain": PlainWatch, "quiet": Watch, "json": JsonWatch}
    return kinds[mode](label, stream)


def first_process() -> bool:
    """Whether this is the first, or the only, process of a run; torchrun and accelerate number them."""
    return os.environ.get("RANK", "0") == "0"


def memory_gib() -> float:
    """GiB in use: the most that CUDA had allocated, or what the process has in memory now."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return float(psutil.Process().memory_info().rss) / 2**30


def peak_memory_gib() -> float:
    """GiB of this process at its peak so far; on CUDA, of what was allocated there."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**30 if sys.platform == "darwin" else 2**20)  # bytes there, KiB on Linux


class Watch(TrainerCallback):
    """Says nothing but warnings, on stderr; the other kinds say more."""

    def __init__(self, label: str, stream: TextIO) -> None:
        self.label, self.stream = label, stream
        self._began, self._from = time.monotonic(), 0
        self._kl: dict[str, float] = {}  # the last that was measured

    def say(self, line: str) -> None:
        """A line for a person; one that begins with "warning: " is not to be missed."""
        if line.startswith(WARNING):
            self.warn(line.removeprefix(WARNING))
        else:
            self.tell(line)

    def tell(self, line: str) -> None:
        """A plain line."""

    def warn(self, line: str) -> None:
        """A line not to be missed."""
        print(f"{WARNING}{printable(line)}", file=sys.stderr, flush=True)

    @contextmanager
    def reference(self) -> Iterator[Callable[[int], None]]:
        """Gives a function to call with the number of records whose reference log-probs are ready."""
        yield lambda count: None

    def end(self, folder: Path, summary: Mapping[str, Any]) -> None:
        """The run has ended; its files are in `folder`."""

    def close(self) -> None:
        """Leave the terminal as it was, also after an error."""

    def step(self, step: int, steps: int) -> None:
        """A step is done."""

    def log(self, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """Figures of training were logged."""

    def evaluated(self, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """Figures of held-out records were logged: before the first step, on the way, and after the last."""

    def begin(self, step: int, steps: int) -> None:
        """Training begins after `step`."""

    # ---- transformers' side

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began, self._from = time.monotonic(), state.global_step
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
        """At the pace since training began; nan before the first step."""
        done = step - self._from
        return (time.monotonic() - self._began) / done * (steps - step) if done > 0 else math.nan


class PlainWatch(Watch):
    """Lines without control characters, for logs and pipes: at most a hundred of them while training."""

    _last = -1
    _records, _told = 0, 0.0

    def tell(self, line: str) -> None:
        """A plain line."""
        print(printable(line), file=self.stream, flush=True)

    def warn(self, line: str) -> None:
        """A line not to be missed."""
        self.tell(f"{WARNING}{line}")

    @contextmanager
    def reference(self) -> Iterator[Callable[[int], None]]:
        """Says every half minute how many records are done."""
        self._told = time.monotonic()

        def advance(count: int) -> None:
            self._records += count
            if count and time.monotonic() - self._told > 30:
                self._told = time.monotonic()
                self.tell(f"reference log-probs: {self._records:,} records done")

        yield advance

    def log(self, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """One line, if it is due."""
        due = step * MOST_LINES // max(steps, 1)
        if due != self._last or step == steps:
            self._last = due
            left = self.seconds_left(step, steps)
            time_left = f"  left {clock(left)}" if math.isfinite(left) and step < steps else ""
            self.tell(f"{self.label} {step}/{steps}  {in_words(figures)}{time_left}")

    def evaluated(self, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """One line on the way; what was before and is after comes at the end."""
        if 0 < step < steps:
            self.tell(f"{self.label} {step}/{steps}  held out: {in_words(_held_out(figures))}")

    def end(self, folder: Path, summary: Mapping[str, Any]) -> None:
        """The verdict, the held-out table, and where everything is."""
        from rich.console import Console

        from prefopt.report.terminal import show_end

        show_end(Console(file=self.stream, no_color=True, force_terminal=False, width=100), folder, summary)


class RichWatch(Watch):
    """A live bar with the latest figures under it."""

    def __init__(self, label: str, stream: TextIO) -> None:
        super().__init__(label, stream)
        self.console = _console(stream)
        self.bar: Any = None
        self.passing: Any = None

    def tell(self, line: str) -> None:
        """A line above the bar."""
        self.console.print(printable(line), highlight=False, markup=False)

    def warn(self, line: str) -> None:
        """A line not to be missed."""
        self.console.print(f"{WARNING}{printable(line)}", style="yellow", highlight=False, markup=False)

    @contextmanager
    def reference(self) -> Iterator[Callable[[int], None]]:
        """A bar that comes with the first records and goes when training begins."""
        from rich.progress import Progress, TextColumn, TimeElapsedColumn

        columns = TextColumn("reference log-probs"), TextColumn("{task.completed:,.0f} records"), TimeElapsedColumn()
        self.passing = Progress(*columns, console=self.console, transient=True)
        task = self.passing.add_task("", total=None)

        def advance(count: int) -> None:
            self.passing.start()
            self.passing.update(task, advance=count)

        try:
            yield advance
        finally:
            self.passing.stop()

    def begin(self, step: int, steps: int) -> None:
        """Show the bar."""
        if self.passing is not None:
            self.passing.stop()
        self.bar = _bar(self.console)
        self.bar.start()
        self.task = self.bar.add_task(self.label, total=steps, completed=step)

    def step(self, step: int, steps: int) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(self.task, completed=step)

    def log(self, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """Show the figures."""
        if self.bar is not None:
            self.bar.figures = in_words(figures)
            self.bar.refresh()

    def evaluated(self, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """A line that stays above the bar; what was before and is after comes at the end."""
        if 0 < step < steps:
            self.tell(f"step {step}, held out: {in_words(_held_out(figures))}")

    def close(self) -> None:
        """Leave the last state of the bar standing."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def end(self, folder: Path, summary: Mapping[str, Any]) -> None:
        """The verdict, the held-out table, and where everything is."""
        from prefopt.report.terminal import show_end

        show_end(self.console, folder, summary)


class JsonWatch(Watch):
    """One JSON object a line: `event` is message, warning, begin, log, evaluation or end."""

    _records = 0

    def _emit(self, event: str, **content: Any) -> None:
        print(json.dumps({"event": event, **_finite(content)}), file=self.stream, flush=True)

    def tell(self, line: str) -> None:
        """A `message`."""
        self._emit("message", text=line)

    def warn(self, line: str) -> None:
        """A `warning`."""
        self._emit("warning", text=line)

    @contextmanager
    def reference(self) -> Iterator[Callable[[int], None]]:
        """Counts them for `begin`."""

        def advance(count: int) -> None:
            self._records += count

        yield advance

    def begin(self, step: int, steps: int) -> None:
        """A `begin`, with the number of records whose reference log-probs were asked for."""
        self._emit("begin", method=self.label, step=step, steps=steps, reference_records=self._records)

    def log(self, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """A `log` with every figure by its name."""
        self._emit("log", step=step, steps=steps, seconds_left=self.seconds_left(step, steps), **figures)

    def evaluated(self, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """An `evaluation` with every figure by its name."""
        self._emit("evaluation", step=step, steps=steps, **figures)

    def end(self, folder: Path, summary: Mapping[str, Any]) -> None:
        """An `end` with the run's summary and verdict."""
        from prefopt.report.verdict import judge
        from prefopt.runs.read import RunFolder

        self._emit("end", output_dir=str(folder), summary=dict(summary), verdict=judge(RunFolder(folder)).plain())


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


@functools.cache
def _console(stream: TextIO) -> Any:
    """One for each stream: lines of one console stay above the bar of the same."""
    from rich.console import Console

    return Console(file=stream, force_terminal=True)


def _held_out(figures: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix("eval_"): value for name, value in figures.items()}


def _finite(value: Any) -> Any:
    """JSON has no nan and no infinity: such numbers become their names."""
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _bar(console: Any) -> Any:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Bar(Progress):
        """The bar, and a line of figures under it."""

        figures = ""

        def get_renderables(self) -> Iterator[Any]:
            yield self.make_tasks_table(self.tasks)
            yield Text(f"  {self.figures}", style="dim")

    return Bar(
        TextColumn("{task.description}", style="bold"), BarColumn(bar_width=None), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        console=console, expand=True,
    )  # fmt: skip
