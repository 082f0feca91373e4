"""How far a comparison is: a line for each job, and on a terminal one bar for the whole with the time left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from prefopt.compare.jobs import Job, Result
from prefopt.compare.spec import METRICS, PRIMARY

if TYPE_CHECKING:
    from rich.console import Console

ROUNDS = ("trials, on validation prompts", "seeds of the chosen settings, on test prompts")


class Display:
    """Follows `prefopt.compare.comparison.compare`; a context manager.

    Args:
        console: to print on.
        rounds: how many jobs each round will have, as far as it is known.
        workers: processes at work.
    """

    def __init__(self, console: Console, rounds: tuple[int, int], workers: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.console, self.expected, self.workers = console, list(rounds), max(1, workers)
        self.done, self.ran, self.seconds = 0, 0, 0.0
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task("starting", total=sum(rounds), left="")
        self.started = time.perf_counter()

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def round(self, number: int, jobs: int) -> None:
        """A round starts."""
        self.expected[number] = jobs
        self.bar.update(self.task, description=f"round {number + 1}", total=sum(self.expected))
        self.say(f"round {number + 1} of 2: {jobs} jobs: {ROUNDS[number]}")

    def job(self, job: Job, result: Result) -> None:
        """A job ended."""
        self.done += 1
        if not result.kept:
            self.ran += 1
            self.seconds += result.cost.get("job_seconds") or 0.0  # a killed one has none
        left = self.left()
        self.bar.update(self.task, advance=1, left=left)
        note = "kept from before" if result.kept else left
        self.say(f"[{self.done}/{sum(self.expected)}] {job.label}: {describe(result)}  ({note})")

    def say(self, line: str) -> None:
        """A line for a person, above the bar."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def left(self) -> str:
        """The time left by what jobs have taken so far."""
        if not self.ran:
            return ""
        pace = min(self.seconds / self.ran / self.workers, (time.perf_counter() - self.started) / self.ran)
        return f"{duration(max(0, sum(self.expected) - self.done) * pace)} left"


def describe(result: Result) -> str:
    """What came out of a job, in a few words."""
    if not result.ok:
        return f"{result.status}: {result.reason}"
    shown = [next((name for name in PRIMARY if name in result.figures), ""), "kl"]
    return ", ".join(
        f"{METRICS[name].title.lower()} {result.figures[name]:.3g}" for name in shown if name in result.figures
    )


def duration(seconds: float) -> str:
    """For people: 45 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def print_outcome(console: Console, result: Any) -> None:
    """The finding, a table of the methods, and the warnings."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from prefopt.compare.results import finding, say_verdict
    from prefopt.compare.statistics import verdict_of

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, header_style="bold", title_justify="left", title_style="dim",
                  title="95 % intervals over seeds and prompts")  # fmt: skip
    best = result.competitors[0].name if result.competitors else None
    columns = (METRICS[result.metric].title, "KL", "against the best", "setting", "s a run")
    table.add_column("method")
    for column in columns:
        table.add_column(column, justify="left" if column in ("against the best", "setting") else "right")
    for s in result.standings:
        pair = verdict_of(result.pairs, s.name, best) if best else None
        value = f"{s.value.point:+.2f} [{s.value.low:+.2f}, {s.value.high:+.2f}]" if s.value else "failed"
        verdict = "best by number" if s.name == best else say_verdict(pair) if pair else s.reason[:60]
        kl = f"{s.figures['kl']:.2f}" if "kl" in s.figures else ""
        row = (s.name, value, kl, verdict, s.setting, f"{s.cost['train_seconds']:.1f}")
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    for sentence in finding(result):
        console.print(Text(sentence))
    for warning in result.warnings:
        console.print(Text(f"warning: {warning}"), style="dim")
