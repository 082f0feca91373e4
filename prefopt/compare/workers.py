"""Jobs on local worker processes: spawned once, one thread each when several; a killed one is a failed row."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from prefopt.compare.jobs import Job, Result, failure, load, save
from prefopt.compare.spec import METRICS
from prefopt.errors import UserError

PATIENCE = 10.0  # seconds for a worker to leave
# oneDNN keeps what it compiled for every shape of a product, half a MiB each, and 1,024 of them by default; shapes of
# one batch come again in every layer, those of another batch hardly ever.
PRODUCTS_KEPT = "128"

Say = Callable[[str], None]
Done = Callable[[Job, Result], None]


def run_jobs(
    jobs: Sequence[Job],
    folder: Path,
    *,
    workers: int | Team = 1,
    progress: Done = lambda job, result: None,
    say: Say = lambda line: None,
) -> list[Result]:
    """The result of every job, in their order: kept ones from `folder`, the others run now.

    Jobs with one key are run once. A job that cannot be run, or whose process is killed, has a result with its reason.

    Args:
        jobs: to run.
        folder: of the results.
        workers: processes, 0 for this one; or a team of them that stays together from call to call.
        progress: called with each job that ends and its result; those from before come first, and say so (`kept`).
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
    if todo and found:
        say(f"{len(found)} of {len(found) + len(todo)} jobs are done already")
    with contextlib.ExitStack() as stack:
        team = workers if isinstance(workers, Team) else stack.enter_context(Team(workers))
        for job, result in team.run(todo):
            save(folder, result)
            found[job.key] = result
            progress(job, result)
    return [dataclasses.replace(found[j.key], method=j.method, label=j.label, setting=j.setting) for j in jobs]


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    job: Job | None = None

    def give(self, job: Job) -> None:
        self.job = job
        with contextlib.suppress(OSError):  # it is dead: that is seen where its result is awaited
            self.pipe.send(job)

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.pipe.close()
        if self.job is None:  # it leaves by itself, and tidies up
            self.process.join(timeout=PATIENCE)
        self.process.terminate()
        self.process.join()


class Team:
    """Worker processes, started when there is work and kept until the end of the `with` block; 0 works here.

    Raises:
        UserError: fewer than none.
    """

    def __init__(self, size: int) -> None:
        if size < 0:
            raise UserError(f"workers={size} must be at least 0, which works in this process; leave it out for one "
                            "for each core")  # fmt: skip
        self.size = size
        self.threads = max(1, cores() // max(1, size))
        self._workers: list[_Worker] = []

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers = []

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Result]]:
        """Each job with its result, as they end."""
        if self.size == 0:
            from prefopt.compare.execute import execute

            yield from ((job, execute(job)) for job in jobs)
            return
        waiting = list(reversed(jobs))
        while len(self._workers) < min(self.size, len(jobs)):
            self._workers.append(_hire(len(self._workers), self.threads))
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

    def _receive(self, place: int) -> Result:
        """What a worker sends; if it died instead, another takes its place."""
        worker = self._workers[place]
        assert worker.job is not None
        try:
            result: Result = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join()
            self._workers[place] = _hire(place, self.threads)
            return failure(worker.job, "failed", _how_it_ended(worker.process.exitcode))
        return result


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
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", PRODUCTS_KEPT)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    from prefopt.common.quiet import quiet
    from prefopt.compare.execute import execute

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
