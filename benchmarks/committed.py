"""Results of jobs that are committed as they come, so that a suite of many hours goes on on any machine.

One JSON file a job in `benchmarks/results/jobs/SUITE/`, named by its recipe: what `Job.key` digests, without the
digests of data and weights, which differ between processors by rounding. A file holds the figures, costs and logged
rewards, the arrays that verdicts are made of, the digests, and the processor that the job ran on. A result of a loss
whose file has changed since is run again.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import processor

from prefopt.common.digest import of_files, source_files
from prefopt.common.files import make_folder, write_text
from prefopt.compare import jobs
from prefopt.compare.jobs import Job, JobResult

FOLDER = Path(__file__).with_name("results") / "jobs"
KEPT = ("label", "status", "reason", "figures", "cost", "warnings")
LOGGED = ("step", "reward")  # of the figures logged during training
DIGITS = 6  # significant ones, of arrays


def recipe(job: Job) -> str:
    """What names the file of a job."""
    return dataclasses.replace(job, fingerprints={}).key


def keep(suite: str, job: Job, result: JobResult, arrays: Collection[str]) -> None:
    """Write the file of a job that was measured or diverged; one that failed runs again."""
    file, before = _file(suite, job), _read(suite, job)
    if result.status == "failed" or (before is not None and before["code"] == _code(job)):
        return
    make_folder(file.parent)
    plain = result.plain()
    curve = [{name: point[name] for name in LOGGED} for point in plain["curve"] if set(LOGGED) <= point.keys()]
    found = {name: [float(f"{x:.{DIGITS}g}") for x in result.arrays[name]] for name in arrays if name in result.arrays}
    facts = {name: plain[name] for name in KEPT} | {
        "code": _code(job),
        "curve": curve,
        "fingerprints": job.fingerprints,
        "processor": processor(),
        "arrays": found,
    }
    write_text(file, json.dumps(facts, sort_keys=True) + "\n")


def restore(suite: str, wanted: Sequence[Job], local: Path) -> None:
    """Put committed results where `run_jobs` finds them, for jobs that this machine has not run itself."""
    for job in wanted:
        facts = _read(suite, job)
        if facts is None or facts["code"] != _code(job) or (local / job.key).exists():
            continue
        arrays = {name: np.asarray(values, dtype=np.float64) for name, values in facts["arrays"].items()}
        fields = {name: facts[name] for name in ("status", "reason", "figures", "cost", "warnings", "curve")}
        jobs.save(local, JobResult(key=job.key, method=job.method, label=job.label, arrays=arrays, **fields))


def provenance(suite: str, wanted: Sequence[Job]) -> dict[str, Any]:
    """How many jobs ran on each processor, and how many draws of the data came out in several versions."""
    files = {_file(suite, job): job for job in wanted}  # two rows may share a job
    found = [(job, facts) for job in files.values() if (facts := _read(suite, job)) is not None]
    versions: defaultdict[str, set[str]] = defaultdict(set)
    for job, facts in found:
        versions[json.dumps(job.config.data.world, sort_keys=True)].add(facts["fingerprints"].get("data", ""))
    return {
        "processors": dict(Counter(facts["processor"] for _, facts in found)),
        "draws_in_several_versions": sum(len(own) > 1 for own in versions.values()),
    }


def _code(job: Job) -> str:
    """The digest of the file of the job's loss, and of what it inherits from."""
    classes = [cls for cls in type(job.config.loss).__mro__ if cls.__module__.startswith("prefopt.")]
    return of_files(source_files(cls.__module__ for cls in classes)) if job.trained else ""


def _file(suite: str, job: Job) -> Path:
    return FOLDER / suite / f"{recipe(job)}.json"


def _read(suite: str, job: Job) -> dict[str, Any] | None:
    try:
        facts: dict[str, Any] = json.loads(_file(suite, job).read_text())
    except FileNotFoundError:
        return None
    return facts
