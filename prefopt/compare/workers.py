"""Jobs on local worker processes: spawned once, one thread each when several; a killed one is a failed row."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from prefopt.compare.jobs import Job, Result, failure, load, save
from prefopt.compare.spec import METRICS

Say = Callable[[str], None]
Done = Callable[[Job, Result], None]


def run_jobs(
    jobs: Sequence[Job],
    folder: Path,
    *,
    workers: int = 1,
    progress: Done = lambda job, result: None,
    say: Say = lambda line: None,
) -> list[Result]:
    """The result of every job, in their order: kept ones from `folder`, the others run now.

    Jobs with one key are run once. A job that cannot be run, or whose process is killed, has a result with its reason.

    Args:
        jobs: to run.
        folder: of the results.
        workers: processes; 0 runs the jobs in this one.
        progress: called with each job that ends, the kept ones first.
        say: called with lines for a person.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Result] = {}
    for job in jobs:
        kept = load(folder, job)
        if kept is not None and job.key not in found:
            found[job.key] = kept
            progress(job, kept)
    todo = list({job.key: job for job in jobs if job.key not in found}.values())
    if todo:
        if found:
            say(f"{len(found)} of {len(found) + len(todo)} jobs are done already")
        source = _here(todo) if workers == 0 else _elsewhere(todo, min(workers, len(todo)))
        for job, result in source:
            save(folder, result)
            found[job.key] = result
            progress(job, result)
    return [_under_its_name(found[job.key], job) for job in jobs]


def _under_its_name(result: Result, job: Job) -> Result:
    from dataclasses import replace

    return replace(result, method=job.method, label=job.label, setting=job.setting)


def _here(jobs: Sequence[Job]) -> Iterator[tuple[Job, Result]]:
    from prefopt.compare.execute import execute

    for job in jobs:
        yield job, execute(job)


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    job: Job | None = None

    def give(self, job: Job) -> None:
        self.job = job
        self.pipe.send(job)

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.pipe.close()
        self.process.join(timeout=2)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()


def _elsewhere(jobs: Sequence[Job], count: int) -> Iterator[tuple[Job, Result]]:
    threads = max(1, cores() // count)
    waiting = list(reversed(jobs))
    team = [_hire(i, threads) for i in range(count)]
    try:
        for worker in team:
            if waiting:
                worker.give(waiting.pop())
        while any(worker.job is not None for worker in team):
            ready = wait([worker.pipe for worker in team if worker.job is not None])
            for place, worker in enumerate(team):
                if worker.pipe not in ready or worker.job is None:
                    continue
                job = worker.job
                try:
                    result: Result = worker.pipe.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    result = failure(job, "failed", _how_it_ended(worker.process.exitcode))
                    worker.stop()
                    worker = team[place] = _hire(place, threads)
                worker.job = None
                yield job, result
                if waiting:
                    worker.give(waiting.pop())
    finally:
        for worker in team:
            worker.stop()


def _hire(number: int, threads: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, number, threads), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _work(pipe: Connection, number: int, threads: int) -> None:
    """What a worker process does: jobs until its pipe closes."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    from prefopt.compare.execute import execute
    from prefopt.compare.quiet import quiet

    quiet()
    while True:
        try:
            job: Job = pipe.recv()
        except (EOFError, OSError):
            return
        pipe.send(execute(job))


def _leave_with_parent() -> None:
    """A worker whose parent was killed must not go on writing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"its process was killed (signal {-code}); out of memory? fewer workers=... leave more to each"
    return f"its process ended with code {code}"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(result: Result) -> str:
    """What came out of a job, in a few words."""
    if not result.ok:
        return f"{result.status}: {result.reason}"
    shown = [name for name in METRICS if name in result.figures and name in ("true_reward", "judge", "accuracy", "kl")]
    return ", ".join(f"{name.replace('true_', '')} {result.figures[name]:.2f}" for name in shown)


class Clock:
    """Time left, from what jobs have taken here."""

    def __init__(self, total: int, workers: int) -> None:
        self.total, self.workers, self.done, self.seconds, self.ran = total, max(1, workers), 0, 0.0, 0

    def saw(self, seconds: float, *, kept: bool) -> None:
        """A job ended after `seconds` of its own; a kept one took no time now."""
        self.done += 1
        if not kept:
            self.ran, self.seconds = self.ran + 1, self.seconds + seconds

    def left(self) -> float | None:
        """Seconds, or None before the first job has ended."""
        if not self.ran:
            return None
        return (self.total - self.done) * self.seconds / self.ran / self.workers

    @staticmethod
    def now() -> float:
        """Seconds of a clock that only runs forward."""
        return time.perf_counter()
