"""A comparison from start to end, in a folder: the lock, both rounds of jobs, the result files."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prefopt.common.files import remove_leftovers
from prefopt.common.locks import locked_folder
from prefopt.compare.jobs import Job, Result
from prefopt.compare.results import Outcome, outcome, write_results
from prefopt.compare.rounds import Contest
from prefopt.compare.spec import BASE, SFT, Comparison
from prefopt.compare.workers import Done, Say, Team, cores, run_jobs
from prefopt.evaluate.judge import with_win_rate

LARGE = 50_000_000  # weights from which on one job is given all cores
JOBS = "jobs"

Runner = Callable[[Sequence[Job]], list[Result]]


def compare(
    comparison: Comparison | Contest,
    output_dir: str | Path,
    *,
    workers: int | None = None,
    command: str = "",
    progress: Done = lambda job, result: None,
    say: Say = lambda line: None,
    rounds: Callable[[int, int], None] = lambda number, jobs: None,
    runner: Runner | None = None,
) -> Outcome:
    """Hold a comparison, and leave `results.json`, `results.md` and `report.html` in `output_dir`.

    What is in `output_dir` already is used: a comparison that was killed goes on, and another method is only added.

    Args:
        comparison: what is compared; or its contest, where the jobs are looked at before.
        output_dir: of the results; its `jobs` has one folder for each run.
        workers: processes, 0 for this one; None: one for each core, and one in all for a large model or a GPU.
        command: to be quoted as what made this.
        progress, say: see `prefopt.compare.workers.run_jobs`.
        rounds: called at the start of each round with its number (0, 1) and how many jobs it has.
        runner: runs jobs in another way than on processes of this machine.

    Raises:
        UserError: something in it cannot be used, or another process works in the folder.
        PrefoptError: no run worked.
    """
    start = time.perf_counter()
    folder = Path(output_dir)
    contest = comparison if isinstance(comparison, Contest) else Contest(comparison)
    with locked_folder(folder), Team(default_workers(contest) if workers is None else workers) as team:
        remove_leftovers(folder / JOBS)

        def here(jobs: Sequence[Job]) -> list[Result]:
            return run_jobs(jobs, folder / JOBS, workers=team, progress=progress, say=say)

        run = runner or here
        if contest.trial_count:
            rounds(0, contest.trial_count)
        trials: list[Result] = []
        while new := further(contest.trials(trials), trials):
            trials = judged([*trials, *run(new)], BASE, contest, folder)
        second = contest.finals(contest.choose(trials))
        rounds(1, len(second))
        finals = judged(run(second), SFT, contest, folder)
        seconds = time.perf_counter() - start
        result = outcome(contest.comparison, contest.rows(trials, finals), command=command, seconds=seconds)
        write_results(folder, result)
    return result


def further(jobs: Sequence[Job], results: Sequence[Result]) -> list[Job]:
    """The jobs that have no result yet."""
    done = {(result.method, result.key) for result in results}
    return [job for job in jobs if (job.method, job.key) not in done]


def judged(results: Sequence[Result], against: str, contest: Contest, folder: Path) -> list[Result]:
    """The results with win rates: the i-th run of a method against the i-th of the method `against`."""
    judge = contest.comparison.measure.judge
    if judge is None:
        return list(results)
    by_method: dict[str, list[Result]] = {}
    for result in results:
        by_method.setdefault(result.method, []).append(result)
    others = [result for result in by_method.get(against, []) if result.ok]
    return [
        with_win_rate(result, others[i % len(others)], judge, folder / "judgements") if others and result.ok else result
        for own in by_method.values()
        for i, result in enumerate(own)
    ]


def default_workers(contest: Contest) -> int:
    """One process for each core, or GPU; one in all for a model that fills the cores by itself."""
    import torch
    from transformers import AutoConfig

    if torch.cuda.is_available():
        return int(torch.cuda.device_count())
    from prefopt.models.load import resolve

    config = contest.base_config.model
    about: Any = AutoConfig.from_pretrained(resolve(config.path), revision=config.revision).get_text_config()
    weights = about.num_hidden_layers * 12 * about.hidden_size**2 + about.vocab_size * about.hidden_size
    return 1 if weights > LARGE else cores()
