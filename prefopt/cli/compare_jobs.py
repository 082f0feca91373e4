"""Lists and runs the jobs of a comparison, estimates their time, and hands them to a Hydra launcher."""

from __future__ import annotations

import dataclasses
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.errors import HydraException

from prefopt.cli import main
from prefopt.cli.compare_options import LAUNCHER_OPTION, CompareConfig
from prefopt.common.escaping_console import Console
from prefopt.common.json_output import print_json
from prefopt.common.redact import printable
from prefopt.compare.caveats import foreseen
from prefopt.compare.comparison import JOBS, compare, default_workers, with_win_rates
from prefopt.compare.execute import data_of, execute
from prefopt.compare.jobs import Job, JobResult, failure, load, save
from prefopt.compare.progress_display import ProgressDisplay, describe, duration
from prefopt.compare.results import plain
from prefopt.compare.rounds import Rounds
from prefopt.compare.spec import BASE, Comparison
from prefopt.compare.wandb_tracking import track
from prefopt.config.explain import explain
from prefopt.errors import UserError
from prefopt.report.compare_text import print_outcome
from prefopt.report.comparison_page import write_comparison
from prefopt.report.paper import write_paper
from prefopt.train.on_policy import prompts_of
from prefopt.train.trainer_config import DEFAULTS

PROBE_STEPS = 8


def run_all(comparison: Comparison, config: CompareConfig, words: Sequence[str], *, as_json: bool = False) -> int:
    """Run the comparison, print its outcome, or its results as JSON, and write its page."""
    console, folder = Console(highlight=False), Path(config.output_dir)
    rounds = Rounds(comparison)
    workers = default_workers(rounds) if config.workers is None else config.workers
    _print_foreseen(console, rounds)
    with ProgressDisplay(console, (rounds.trial_count, rounds.final_count), workers) as progress:
        result = compare(
            rounds,
            folder,
            workers=workers,
            command=shlex.join(["prefopt", "compare", *words]),
            progress=progress,
            runner=launcher_runner(words, config) if config.launcher else None,
        )
    write_comparison(folder, result)
    write_paper(folder, result)
    if as_json:
        print_json(plain(result), indent=1)
    else:
        print_outcome(console, result)
    track(result, rounds.base_config.tracking, folder)
    console.print(
        f"{result.seconds:.0f} s; open {folder / 'report.html'} in a browser; "
        f"tables and figures for a paper: {folder / 'paper'}"
    )
    return 0


def known_jobs(rounds: Rounds, folder: Path, *, failed: bool = False) -> tuple[list[Job], list[Job] | None]:
    """Find the trials that are known so far, and the jobs of the second round if every trial has a result.

    Args:
        rounds: the rounds of the comparison.
        folder: the folder of the results.
        failed: count a failed run as a result; else it must run again before what depends on it is known.
    """
    results: list[JobResult] = []
    while True:
        trials = rounds.trials(results)
        kept = [result for job in trials if (result := load(folder, job, failed=failed)) is not None]
        if trials and not any(result.method == BASE for result in kept):
            return trials, None  # a judge compares all others with it
        if len(kept) == len(results):
            break
        results = with_win_rates(kept, BASE, rounds, folder.parent)
    if len(results) < len(trials):
        return trials, None
    return trials, rounds.finals(rounds.choose(results))


def print_list(comparison: Comparison, config: CompareConfig) -> int:
    """Print a line for each job that is known so far: key, status, name."""
    folder = Path(config.output_dir) / JOBS
    trials, finals = known_jobs(Rounds(comparison), folder)
    for job in (*trials, *(finals or ())):
        result = load(folder, job)
        print(printable(f"{job.key}  {result.status if result is not None else 'to do':8}  {job.label}"))
    if finals is None:
        print("# a method's next trial is known once those before it are done, the second round once all trials are")
    return 0


def run_one(comparison: Comparison, config: CompareConfig) -> int:
    """Run the job `only=KEY` unless it is done, as on a cluster.

    Raises:
        UserError: there is no such job.
    """
    folder = Path(config.output_dir) / JOBS
    trials, finals = known_jobs(Rounds(comparison), folder, failed=True)
    job = next((job for job in (*trials, *(finals or ())) if job.key == config.only), None)
    if job is None:
        raise UserError(f"only={config.only}: no job has this key; `prefopt compare ... --list` prints them")
    result = load(folder, job)
    if result is None:
        result = execute(job)
        save(folder, result)
    print(printable(f"{job.label}: {describe(result)}"))
    return 0


def launcher_runner(argv: Sequence[str], config: CompareConfig) -> Callable[[Sequence[Job]], list[JobResult]]:
    """Return a runner that hands jobs to a Hydra launcher, each as `prefopt compare ... only=KEY`.

    The runner raises UserError if the launcher's plugin is not installed.
    """
    folder = Path(config.output_dir) / JOBS
    options = [word for word in argv if word.startswith(LAUNCHER_OPTION)]
    ours = ("launcher=", "hydra/launcher=", "only=", LAUNCHER_OPTION)
    words = [word for word in argv if not word.startswith(ours)]

    def run(jobs: Sequence[Job]) -> list[JobResult]:
        todo = list(dict.fromkeys(job.key for job in jobs if load(folder, job) is None))
        if todo:
            launch(words, todo, str(config.launcher), options, folder.parent)
        found = [load(folder, job, failed=True) for job in jobs]
        return [r or failure(j, "failed", "the launcher left no result") for j, r in zip(jobs, found, strict=True)]

    return run


def launch(words: Sequence[str], keys: Sequence[str], launcher: str, options: Sequence[str], folder: Path) -> None:
    """Run `prefopt compare *words only=KEY` for every key through Hydra's multirun.

    Raises:
        UserError: Hydra rejects the launcher or its options, for example because its plugin is missing.
    """
    ConfigStore.instance().store(name="compare_job", node={"words": list(words), "key": "?"})
    arguments = [
        "--multirun", f"key={','.join(keys)}", f"hydra/launcher={launcher}", f"hydra.sweep.dir={folder / 'launcher'}",
        "hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none", *options,
    ]  # fmt: skip
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors reach us
    saved, sys.argv = sys.argv, ["prefopt compare", *arguments]
    try:
        hydra.main(version_base="1.3", config_path=None, config_name="compare_job")(one_job)()
    except HydraException as error:
        raise explain(error, [f"launcher={launcher}", *options]) from error
    finally:
        sys.argv = saved


def one_job(config: Any) -> None:
    """Run one job; called by a launcher, perhaps on another machine with the same file system."""
    launcher = Singleton.get_state()
    GlobalHydra.instance().clear()  # the job composes its own configurations
    try:
        main(["compare", *config.words, f"only={config.key}"])
    finally:
        Singleton.set_state(launcher)


def dry_run(comparison: Comparison, config: CompareConfig) -> int:
    """Print the jobs and an estimate of their time."""
    console = Console()
    folder = Path(config.output_dir) / JOBS
    rounds = Rounds(comparison)
    workers = max(1, default_workers(rounds) if config.workers is None else config.workers)
    trials, finals = known_jobs(rounds, folder)
    _print_foreseen(console, rounds)
    first, second = rounds.trial_count, rounds.final_count if finals is None else len(finals)
    for job in trials:
        console.print(f"  {job.label}", highlight=False, markup=False, soft_wrap=True)
    kind = "best" if rounds.trials_each else "first"
    for method in rounds.methods:
        left = rounds.trials_each - sum(job.method == method.name for job in trials)
        if left:
            console.print(f"  {method.name}, {left} more near its best, validation", highlight=False)
        console.print(f"  {method.name}, its {kind} setting, {comparison.seeds} seeds, test", highlight=False)
    done = [result for job in (*trials, *(finals or ())) if (result := load(folder, job)) is not None]
    todo = first + second - len(done)
    seconds, source = seconds_of_a_job([*trials, *(finals or ())], done)
    console.print(
        f"{first} + {second} jobs, {len(done)} of them done; {todo} to do at about {seconds:.1f} s each "
        f"({source}), {workers} at once: {duration(todo * seconds / workers)}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    return 0


def _print_foreseen(console: Console, rounds: Rounds) -> None:
    """Print what will weaken the verdicts, whatever the runs give; worlds have prompts enough."""
    config = rounds.base_config
    held_out = [] if config.data.is_world else data_of(config).half("test")
    prompts = {tuple(record.prompt.tolist()) for record in held_out}
    for warning in foreseen(rounds.comparison, len(prompts)) if held_out else []:
        console.print(f"warning: {warning}", highlight=False, markup=False, soft_wrap=True)


def seconds_of_a_job(jobs: Sequence[Job], done: Sequence[JobResult]) -> tuple[float, str]:
    """Estimate the time of a job, and say from what: finished jobs in the folder, or a short probe."""
    trained_ones = [r.cost for r in done if r.ok and "train_seconds" in r.cost]
    known = [cost["train_seconds"] + cost["measure_seconds"] for cost in trained_ones]
    if known:
        return statistics.median(known), f"from {len(known)} finished jobs"
    job = [job for job in jobs if job.trained][-1]
    short = {**job.config.trainer, "max_steps": PROBE_STEPS}
    start = time.perf_counter()
    result = execute(dataclasses.replace(job, config=dataclasses.replace(job.config, trainer=short)))
    if not result.ok:
        raise UserError(f"{job.label} does not run: {result.reason}")
    cost = result.cost
    total = cost["train_seconds"] * steps_of(job) / PROBE_STEPS + cost["measure_seconds"]
    return total, f"from a probe of {PROBE_STEPS} steps that took {time.perf_counter() - start:.0f} s"


def steps_of(job: Job) -> int:
    """The number of optimizer steps of a job."""
    settings = {**DEFAULTS, **job.config.trainer}
    steps = int(settings.get("max_steps") or -1)
    if steps > 0:
        return steps
    config, records = job.config, data_of(job.config).train
    updates = config.rollout.settled(config.loss).updates or 1
    count = len(prompts_of(records)) * updates if config.source == "rollouts" else len(records)
    return max(1, round(float(settings["num_train_epochs"]) * count / config.batch.records))
