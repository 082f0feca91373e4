"""Worker processes: a killed one is a failed row, and they keep nothing of the jobs they did."""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from prefopt.compare import workers
from prefopt.compare.jobs import Job, JobResult
from prefopt.compare.spec import MeasureConfig
from prefopt.compare.workers import Team, run_jobs
from prefopt.config.compose import compose
from prefopt.errors import UserError

Hold = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def job() -> Job:
    return Job(
        method="dpo", label="dpo, one run", config=compose(["loss=dpo", "output_dir=here"]), measure=MeasureConfig(),
        fingerprints={"data": "d", "weights": "w"}, split="test",
    )  # fmt: skip


class Fatal(Job):
    """A job whose process is killed as soon as it has it."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if threading.current_thread() is threading.main_thread() and os.environ.get("OMP_NUM_THREADS") == "1":
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_worker_is_a_failed_row_and_the_others_go_on(job: Job, tmp_path: Path) -> None:
    """Killed while it waits (nobody reads the job that it is given), or at work; the next job has another worker.

    The other jobs fail by themselves: there is no such model.
    """
    config = dataclasses.replace(job.config, model=dataclasses.replace(job.config.model, path="/nowhere"))
    orphans = [dataclasses.replace(job, config=dataclasses.replace(config, seed=seed)) for seed in range(3)]
    fatal = Fatal(**{f.name: getattr(job, f.name) for f in dataclasses.fields(job)})
    with Team(1) as team:
        team.threads = 1
        (first,) = run_jobs(orphans[:1], tmp_path, workers=team)
        team._workers[0].process.kill()
        team._workers[0].process.join()
        waited, worked, last = run_jobs([orphans[1], fatal, orphans[2]], tmp_path, workers=team)
    assert "/nowhere" in first.reason
    for killed in (waited, worked):
        assert (killed.status, "killed (signal 9)" in killed.reason) == ("failed", True)
    assert last.status == "failed"
    assert "/nowhere" in last.reason


def test_fewer_workers_than_none() -> None:
    with pytest.raises(UserError, match=r"workers=-1 must be at least 0"):
        Team(-1)


@pytest.mark.slow
def test_a_worker_keeps_nothing_of_the_jobs_it_did(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models, trainers and their tensors go with each job; the data and the reference are kept once."""
    counts: list[tuple[int, int]] = []
    run = workers.execute

    def counted(job: Job) -> JobResult:
        result = run(job)
        gc.collect()
        kinds = [type(one) for one in gc.get_objects()]
        counts.append((sum(issubclass(k, torch.Tensor) for k in kinds), sum(issubclass(k, Trainer) for k in kinds)))
        return result

    monkeypatch.setattr(workers, "execute", counted)
    hold("losses=[dpo,kto]", "seeds=1", "budget.trials=2")
    assert len(counts) == 7 + 4  # trials of every method, then final runs
    tensors, trainers = zip(*counts, strict=True)
    assert max(tensors[7:]) < max(tensors[:7]) + 12  # one model has more than twelve
    assert max(trainers) <= 1
