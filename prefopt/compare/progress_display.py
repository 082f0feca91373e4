"""Reports the progress of a comparison: a line per job and, on a terminal, a bar with the time left."""

from __future__ import annotations

import time

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from prefopt.common.escaping_console import Console
from prefopt.compare.jobs import Job, JobResult
from prefopt.compare.spec import METRICS, PRIMARY

ROUNDS = ("trials, on validation prompts", "seeds of the chosen settings, on test prompts")


class Progress:
    """What a comparison calls as it goes; this one shows nothing."""

    def round(self, number: int, jobs: int) -> None:
        """Start a round (0: trials, 1: final runs) of so many jobs."""

    def job(self, job: Job, result: JobResult) -> None:
        """Finish a job; results kept from an earlier call come first and are marked (`kept`)."""

    def log(self, line: str) -> None:
        """Show a message."""


class ProgressDisplay(Progress):
    """Shows the progress on a console; a context manager.

    Args:
        console: where to print.
        rounds: the expected number of jobs of each round.
        workers: the number of worker processes.
    """

    def __init__(self, console: Console, rounds: tuple[int, int], workers: int) -> None:
        self.console, self.expected, self.workers = console, list(rounds), max(1, workers)
        self.done, self.ran, self.seconds = 0, 0, 0.0
        self.bar = Bar(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task("starting", total=sum(rounds), left="")
        self.started = time.perf_counter()

    def __enter__(self) -> ProgressDisplay:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def round(self, number: int, jobs: int) -> None:
        """Show which round starts."""
        self.expected[number] = jobs
        self.bar.update(self.task, description=f"round {number + 1}", total=sum(self.expected))
        self.log(f"round {number + 1} of 2: {jobs} jobs: {ROUNDS[number]}")

    def job(self, job: Job, result: JobResult) -> None:
        """Show the result of a job and the time left."""
        self.done += 1
        if not result.kept:
            self.ran += 1
            self.seconds += result.cost.get("job_seconds") or 0.0  # a killed job has none
        left = self.left()
        self.bar.update(self.task, advance=1, left=left)
        note = "kept from before" if result.kept else left
        self.log(f"[{self.done}/{sum(self.expected)}] {job.label}: {describe(result)}  ({note})")

    def log(self, line: str) -> None:
        """Print a line above the bar."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def left(self) -> str:
        """Estimate the time left from the jobs run so far."""
        if not self.ran:
            return ""
        pace = min(self.seconds / self.ran / self.workers, (time.perf_counter() - self.started) / self.ran)
        return f"{duration(max(0, sum(self.expected) - self.done) * pace)} left"


def describe(result: JobResult) -> str:
    """Describe the result of a job in a few words."""
    if not result.ok:
        return f"{result.status}: {result.reason}"
    shown = [next((name for name in PRIMARY if name in result.figures), ""), "kl"]
    return ", ".join(
        f"{METRICS[name].in_words} {result.figures[name]:z.3f}" for name in shown if name in result.figures
    )


def duration(seconds: float) -> str:
    """Format a duration: 45 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
