"""Runs jobs on local worker processes: spawned once, one thread each where there are several."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from prefopt.common.files import make_folder, remove_leftovers
from prefopt.common.quiet import quiet
from prefopt.compare.execute import execute
from prefopt.compare.jobs import Job, JobResult, failure, load, save
from prefopt.compare.progress_display import Progress
from prefopt.errors import UserError

PATIENCE = 10.0  # seconds that a worker has to exit
# oneDNN keeps what it compiled for every shape of a product, half a MiB each, and 1,024 of them by default; shapes of
# one batch recur in every layer, those of another batch hardly ever.
PRODUCTS_KEPT = "128"


def run_jobs(
    jobs: Sequence[Job], folder: Path, *, workers: int | Team = 1, progress: Progress | None = None
) -> list[JobResult]:
    """Return the result of every job, in order: kept ones from `folder`, the others run now.

    Jobs with one key are run once. A job that cannot run, or whose process is killed, has a result with the reason.

    Args:
        jobs: the jobs to run.
        folder: where the results are.
        workers: the number of processes, 0 for this one; or a team that is kept from call to call.
        progress: notified of each job that ends.
    """
    progress = progress or Progress()
    remove_leftovers(make_folder(folder))
    found: dict[str, JobResult] = {}
    for job in jobs:
        kept = load(folder, job)
        if kept is not None and job.key not in found:
            found[job.key] = kept
            progress.job(job, kept)
    todo = list({job.key: job for job in jobs if job.key not in found}.values())
    if todo and found:
        progress.log(f"{len(found)} of {len(found) + len(todo)} jobs are done already")
    with contextlib.ExitStack() as stack:
        team = workers if isinstance(workers, Team) else stack.enter_context(Team(workers))
        for job, result in team.run(todo):
            save(folder, result)
            found[job.key] = result
            progress.job(job, result)
    return [dataclasses.replace(found[j.key], method=j.method, label=j.label, setting=j.setting) for j in jobs]


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    job: Job | None = None

    def give(self, job: Job) -> None:
        self.job = job
        with contextlib.suppress(OSError):  # it died: `Team` finds out where it awaits the result
            self.pipe.send(job)

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.pipe.close()
        if self.job is None:  # it exits by itself and cleans up
            self.process.join(timeout=PATIENCE)
        self.process.terminate()
        self.process.join()


class Team:
    """Worker processes, started when there is work and kept until the end of the `with` block.

    Args:
        size: the number of processes; 0 runs the jobs in this one.

    Raises:
        UserError: a negative size.
    """

    def __init__(self, size: int) -> None:
        if size < 0:
            raise UserError(f"workers={size} must be at least 0 (0 runs the jobs in this process); leave it out for "
                            "one per core")  # fmt: skip
        self.size = size
        # Several share the cores; none has more than this process, by torch's default or OMP_NUM_THREADS.
        self.threads = max(1, min(torch.get_num_threads(), cores() // max(1, size)))
        self._workers: list[_Worker] = []

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers = []

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, JobResult]]:
        """Yield each job with its result, as they end."""
        if self.size == 0:
            yield from ((job, execute(job)) for job in jobs)
            return
        waiting = list(reversed(jobs))
        while len(self._workers) < min(self.size, len(jobs)):
            self._workers.append(_start_worker(len(self._workers), self.threads))
        for worker in self._workers:
            if waiting:
                worker.give(waiting.pop())
        while busy := [worker for worker in self._workers if worker.job is not None]:
            ready = wait([worker.pipe for worker in busy])
            for place, worker in enumerate(self._workers):
                if worker.job is None or worker.pipe not in ready:
                    continue
                job = worker.job
                result = self._receive(place)
                self._workers[place].job = None
                yield job, result
                if waiting:
                    self._workers[place].give(waiting.pop())

    def _receive(self, place: int) -> JobResult:
        """Return what a worker sends; if it died instead, replace it and return a failure."""
        worker = self._workers[place]
        assert worker.job is not None
        try:
            result: JobResult = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join()
            self._workers[place] = _start_worker(place, self.threads)
            return failure(worker.job, "failed", _how_it_ended(worker.process.exitcode))
        return result


def _start_worker(number: int, threads: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, number, threads), daemon=True)
    with _environment(OMP_NUM_THREADS=str(threads), TOKENIZERS_PARALLELISM="false",
                      ONEDNN_PRIMITIVE_CACHE_CAPACITY=os.environ.get("ONEDNN_PRIMITIVE_CACHE_CAPACITY",
                                                                     PRODUCTS_KEPT)):  # fmt: skip
        process.start()
    theirs.close()
    return _Worker(process, ours)


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set environment variables for processes started in the block: a worker needs them before it imports torch."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(pipe: Connection, number: int, threads: int) -> None:
    """Run jobs in a worker process until its pipe closes."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    quiet()
    gc.freeze()  # each job collects garbage, which takes long where imported modules are searched, too
    while True:
        try:
            job: Job = pipe.recv()
        except (EOFError, OSError):
            return
        pipe.send(execute(job))


def _exit_with_parent() -> None:
    """End this worker when its parent is killed, so that it stops writing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"its process was killed (signal {-code}); out of memory? fewer workers=... leave more to each"
    return f"its process exited with code {code}"


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
