"""Runs a comparison in a folder: takes the lock, runs both rounds of jobs, and writes `results.json`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from prefopt.common.locks import locked_folder
from prefopt.compare.jobs import Job, JobResult
from prefopt.compare.outcome import ComparisonOutcome
from prefopt.compare.progress_display import Progress
from prefopt.compare.results import outcome, write_results
from prefopt.compare.rounds import Rounds
from prefopt.compare.spec import BASE, SFT, Comparison
from prefopt.compare.win_rates import with_win_rate
from prefopt.compare.workers import Team, cores, run_jobs
from prefopt.runs.resolve import resolve_path

LARGE = 50_000_000  # weights from which a job gets all cores
JOBS = "jobs"

Runner = Callable[[Sequence[Job]], list[JobResult]]


def compare(
    comparison: Comparison | Rounds,
    output_dir: str | Path,
    *,
    workers: int | None = None,
    command: str = "",
    progress: Progress | None = None,
    runner: Runner | None = None,
) -> ComparisonOutcome:
    """Run a comparison and leave `results.json` in `output_dir`.

    Results that are in `output_dir` already are kept: a comparison that was killed resumes, and another method is
    added to those that were compared before.

    Args:
        comparison: what is compared; or its rounds, where the jobs are looked at before.
        output_dir: where the results go; its folder `jobs` has one folder for each run.
        workers: the number of processes, 0 for this one; None: one per core, or a single one for a large model.
        command: the command to quote in the results.
        progress: notified of rounds, jobs and messages.
        runner: runs jobs in another way than on processes of this machine.

    Raises:
        UserError: something in it cannot be used, or another process works in the folder.
        PrefoptError: no run worked.
    """
    start = time.perf_counter()
    folder, progress = Path(output_dir), progress or Progress()
    rounds = comparison if isinstance(comparison, Rounds) else Rounds(comparison)
    with locked_folder(folder), Team(default_workers(rounds) if workers is None else workers) as team:

        def on_team(jobs: Sequence[Job]) -> list[JobResult]:
            return run_jobs(jobs, folder / JOBS, workers=team, progress=progress)

        run = runner or on_team
        if rounds.trial_count:
            progress.round(0, rounds.trial_count)
        trials: list[JobResult] = []
        while new := pending(rounds.trials(trials), trials):
            trials = with_win_rates([*trials, *run(new)], BASE, rounds, folder)
        second = rounds.finals(rounds.choose(trials))
        progress.round(1, len(second))
        finals = with_win_rates(run(second), SFT, rounds, folder)
        seconds = time.perf_counter() - start
        result = outcome(rounds.comparison, rounds.by_method(trials, finals), command=command, seconds=seconds)
        write_results(folder, result)
    return result


def pending(jobs: Sequence[Job], results: Sequence[JobResult]) -> list[Job]:
    """Return the jobs that have no result yet."""
    done = {(result.method, result.key) for result in results}
    return [job for job in jobs if (job.method, job.key) not in done]


def with_win_rates(results: Sequence[JobResult], against: str, rounds: Rounds, folder: Path) -> list[JobResult]:
    """Add win rates to the results: the i-th run of a method against the i-th run of the method `against`."""
    judge = rounds.comparison.measure.judge
    if judge is None:
        return list(results)
    by_method: dict[str, list[JobResult]] = {}
    for result in results:
        by_method.setdefault(result.method, []).append(result)
    others = [result for result in by_method.get(against, []) if result.ok]
    return [
        with_win_rate(result, others[i % len(others)], judge, folder / "judgements") if others and result.ok else result
        for own in by_method.values()
        for i, result in enumerate(own)
    ]


def default_workers(rounds: Rounds) -> int:
    """Return one process per core or GPU, or a single one for a model that fills the cores by itself."""
    if torch.cuda.is_available():
        return int(torch.cuda.device_count())
    model = rounds.base_config.model
    config: Any = AutoConfig.from_pretrained(
        resolve_path(model.path, rounds.base_config.data),
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
    ).get_text_config()
    weights = config.num_hidden_layers * 12 * config.hidden_size**2 + config.vocab_size * config.hidden_size
    return 1 if weights > LARGE else cores()
