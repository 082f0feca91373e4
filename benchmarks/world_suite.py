"""Shared parts of the suites on the review world: a line of a table, its runs, and the figures kept of them.

A suite is a list of jobs of `prefopt.compare`, identified by their content: a stopped suite continues where it stopped,
and a suite with added lines runs only the new ones. Seed s selects the s-th draw of texts and labels and the s-th order
of the records, the same for all lines, so that lines are compared on the same data.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import committed

from prefopt.compare.jobs import Job, JobResult
from prefopt.compare.progress_display import Progress
from prefopt.compare.rounds import fingerprints
from prefopt.compare.spec import MeasureConfig, RewardChange, Split
from prefopt.compare.workers import run_jobs
from prefopt.config.compose import compose
from prefopt.config.run_config import RunConfig
from prefopt.train.trainer_config import DEFAULTS

RESULTS = Path(__file__).with_name("results")
JOBS = Path("runs/benchmarks")
STEPS, BATCH = 96, 128  # and pairs a step: one and a half times over the data
VALIDATION = MeasureConfig(prompts=512, samples_per_prompt=2, texts=0)
TEST = MeasureConfig(prompts=1024, samples_per_prompt=2, texts=1)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of a table: a method at the strengths of its grid.

    Attributes:
        name: in tables.
        loss: name in the menu.
        strength: the hyper-parameter that controls how far the method moves.
        values: its grid, from the policy that stays nearest to the start to the one that moves furthest.
        fixed: further overrides, as for `prefopt train`.
        claim: the paper's claim, in a few words.
        seed_offset: added to the seed of the order, not of the data: the same method under two names.
        sides_swapped: train on pairs with their sides swapped.
        reward_change: train on changed rewards of samples, as controls of `prefopt compare` do.
    """

    name: str
    loss: str
    strength: str = ""
    values: tuple[float, ...] = ()
    fixed: tuple[str, ...] = ()
    claim: str = ""
    seed_offset: int = 0
    sides_swapped: bool = False
    reward_change: RewardChange = ""

    def overrides(self, value: float | None = None) -> list[str]:
        """The overrides for `prefopt train`."""
        strength = [f"loss.{self.strength}={value:g}"] if value is not None else []
        return [f"loss={self.loss}", *strength, *self.fixed]


def job(
    line: Line,
    *overrides: str,
    value: float | None = None,
    seed: int = 0,
    split: Split = "test",
    measure: MeasureConfig = TEST,
) -> Job:
    """One run of a line on the `seed`-th draw of the data, measured on `split`."""
    said = [f"trainer.max_steps={STEPS}", f"batch.records={BATCH}", *line.overrides(value), *overrides]
    said = list({one.split("=", 1)[0]: one for one in said}.values())  # what is said last counts
    config = _composed(tuple(said))
    config = dataclasses.replace(
        config,
        seed=seed + line.seed_offset,
        data=dataclasses.replace(config.data, world=config.data.world | {"draw": seed}),
    )
    return Job(
        method=line.name,
        label=f"{line.name} {' '.join(o.split('.')[-1] for o in said[3:])} seed={seed} {split}",
        config=config,
        fingerprints=fingerprints(config),
        measure=measure,
        split=split,
        sides_swapped=line.sides_swapped,
        reward_change=line.reward_change,
        setting={line.strength: value} if value is not None else {},
    )


@cache
def _composed(said: tuple[str, ...]) -> RunConfig:
    """What `prefopt train` would run; composed once for all seeds."""
    config = compose([*said, "output_dir=."])
    config.trainer.setdefault("learning_rate", DEFAULTS["learning_rate"])
    return config


def knob(name: str, value: float) -> tuple[str, ...]:
    """A knob of the world as an override; none for 0, which is how the world is: suites then share the run."""
    return (f"data.world.{name}={value:g}",) if value else ()


class SuiteProgress(Progress):
    """Prints a line for each job of a suite.

    Args:
        suite: its name.
        count: the number of its jobs.
        arrays: those of each result that are kept with it to be committed; None: nothing is.
    """

    def __init__(self, suite: str, count: int, arrays: Collection[str] | None = None) -> None:
        self.suite, self.count, self.arrays = suite, count, arrays
        self.start, self.ended = time.perf_counter(), 0

    def job(self, job: Job, result: JobResult) -> None:
        """Print the result of a job."""
        self.ended += 1
        if self.arrays is not None:
            committed.keep(self.suite, job, result, self.arrays)
        found = result.figures
        shown = ", ".join(f"{name} {found[name]:+.3f}" for name in ("true_reward", "judge", "kl") if name in found)
        text = shown if result.ok else result.reason
        seconds = time.perf_counter() - self.start
        print(f"{self.suite} {self.ended}/{self.count} {seconds:.0f} s  {job.label}: {text}", flush=True)


def run(suite: str, jobs: Sequence[Job], workers: int, arrays: Collection[str] | None = None) -> list[JobResult]:
    """The results of all jobs, in their order; kept under `runs/benchmarks/`, which all suites share.

    With `arrays`, even none, results are also kept to be committed (`committed.py`), with these arrays of each.
    """
    if arrays is not None:
        committed.restore(suite, jobs, JOBS)
    return run_jobs(jobs, JOBS, workers=workers, progress=SuiteProgress(suite, len(jobs), arrays))


Cell = Callable[[int], Job]  # from a seed to its job


def cell(line: Line, *overrides: str) -> Cell:
    """A line at its one setting, by seed."""
    return lambda seed: job(line, *overrides, seed=seed)


def by_seed(
    suite: str, cells: Sequence[Cell], size: Size, arrays: Collection[str] | None = None
) -> list[list[JobResult]]:
    """For each cell of a table its results by seed; run seed after seed, so that what is cut short has whole seeds."""
    results = iter(run(suite, [one(seed) for seed in range(size.seeds) for one in cells], size.workers, arrays))
    rounds = [[next(results) for _ in cells] for _ in range(size.seeds)]
    return [list(own) for own in zip(*rounds, strict=True)]


def tabulated(
    suite: str, description: str | None, table: Sequence[tuple[Mapping[str, Any], Line, Cell]], figures: Sequence[str]
) -> None:
    """Run a suite of one table as its command line says, and keep it.

    Args:
        suite: its name.
        description: what `--help` says.
        table: of each row what it is besides its line, its line, and its runs.
        figures: means of the row.
    """
    allowed = size(description)
    found = by_seed(suite, [one for _, _, one in table], allowed)
    rows = [
        {**facts, "name": line.name, "claim": line.claim, **over_seeds(own, *figures)}
        for (facts, line, _), own in zip(table, found, strict=True)
    ]
    seconds = worker_seconds([result for own in found for result in own])
    save(suite, {"setting": allowed.setting(), "rows": rows, "worker_seconds": seconds})


def over_seeds(results: Sequence[JobResult], *names: str) -> dict[str, Any]:
    """Mean over seeds of each figure, its standard error over seeds as `NAME_se`, and how many runs did not finish."""
    good = [result for result in results if result.ok]
    found: dict[str, Any] = {"runs": len(results), "failed": len(results) - len(good)}
    for name in names:
        values = [result.figures[name] for result in good]
        found[name] = round(fmean(values), 4) if values else None
        found[f"{name}_se"] = round(stdev(values) / len(values) ** 0.5, 4) if len(values) > 1 else None
    return found


def worker_seconds(results: Sequence[JobResult]) -> float:
    """What the runs took together, by the clock."""
    return round(sum(sum(r.cost.get(part, 0.0) for part in ("train_seconds", "measure_seconds")) for r in results), 0)


def save(suite: str, content: Mapping[str, Any]) -> None:
    """Write the result file that tables and figures are made from."""
    file = RESULTS / f"{suite}.json"
    file.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {file}; now `make results`")


@dataclass(frozen=True)
class Size:
    """What a suite may take: processes of one thread each, and seeds; which suite of several, and how many lines."""

    workers: int
    seeds: int
    suite: str = ""
    lines: int | None = None

    def setting(self) -> dict[str, int]:
        """For the result file."""
        return {"steps": STEPS, "batch": BATCH, "seeds": self.seeds}


def size(description: str | None, suites: Collection[str] = ()) -> Size:
    """The options of a suite, or of one of several."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if suites:
        parser.add_argument("suite", choices=list(suites))
        parser.add_argument("--lines", type=int, help="only the first so many lines of the suite (default: all)")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the data (default: %(default)s)")
    args = parser.parse_args()
    return Size(**vars(args))
