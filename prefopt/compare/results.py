"""Derives the outcome of a comparison from its runs, and writes it as `results.json`."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.common.files import write_json
from prefopt.common.smallest_effects import MARGIN
from prefopt.common.versions import version_of
from prefopt.compare.caveats import caveats
from prefopt.compare.jobs import VERSIONS, JobResult, finite
from prefopt.compare.outcome import ComparisonOutcome, Standing
from prefopt.compare.rounds import MethodRuns, fingerprints
from prefopt.compare.search import at_edge, strength
from prefopt.compare.spec import METRICS, PRIMARY, Comparison
from prefopt.compare.statistics import Interval, Smallest, compare, intervals
from prefopt.errors import PrefoptError

Floats = NDArray[np.float64]
RESULTS = "results.json"
TOTALS = ("reference_seconds", "reference_texts", "figures_seconds", "figures_texts", "job_seconds")  # of all runs
ONE_RUN = (
    "labels",
    "tokens_sampled",
    "tokens_scored",
    "tokens_trained",
    "reward_model_seconds",
)  # costs of a final run


def outcome(comparison: Comparison, rows: Sequence[MethodRuns], *, command: str, seconds: float) -> ComparisonOutcome:
    """Derive the outcome from the runs of every row.

    Raises:
        PrefoptError: nothing could be measured.
    """
    metric = _metric(rows)
    better = METRICS[metric].better
    common = common_seeds(rows, metric)
    places = {row.name: _places(row, metric, common) for row in rows}
    values = {row.name: of for row in rows if (of := seeds_by_prompts(row, metric, common)) is not None}
    values = dict(sorted(values.items(), key=lambda item: -better * float(item[1].mean())))
    numbers = {row.name: [_offset(row) + place for place in places[row.name]] for row in rows}
    untrained = [row.name for row in rows if row.method is None]
    pairs = compare(
        values,
        metric,
        smallest=smallest_rule(rows, metric, common),
        better=better,
        numbers=numbers,
        untrained=untrained,
    )
    drawn = intervals(values, pairs)
    standings = sorted(
        (_standing(row, drawn.get(row.name), places[row.name]) for row in rows), key=lambda s: _order(s, better)
    )
    return ComparisonOutcome(
        comparison=comparison,
        metric=metric,
        standings=standings,
        pairs=pairs,
        warnings=caveats(comparison, standings, pairs, values, shared=common is not None),
        command=command,
        facts=_facts(rows),
        seconds=seconds,
    )


def smallest_rule(rows: Sequence[MethodRuns], metric: str, common: Sequence[int] | None = None) -> Smallest:
    """Return the smallest difference of two rows that matters: inf where neither has moved on the average pair."""
    about = METRICS[metric]
    margins = {row.name: found for row in rows if (found := seeds_by_prompts(row, "margin", common)) is not None}
    moved = {name: float(np.abs(found).mean()) for name, found in margins.items()}  # in either direction

    def smallest(a: str, b: str, spread: float) -> float:
        known = [moved[name] for name in (a, b) if name in moved]
        if about.moved and known and max(known) < MARGIN:
            return math.inf
        return about.smallest * (spread if about.deviations else 1)

    return smallest


def common_seeds(rows: Sequence[MethodRuns], metric: str) -> list[int] | None:
    """Return the places of the final runs that worked for every method; a failed run leaves its seed out for all.

    Methods that worked nowhere do not count, nor do methods with seeds of their own, which are not paired.

    Returns:
        None where fewer than two of several seeds would remain: then each method keeps its own seeds, and methods with
        two in common are compared.
    """
    trained = [row for row in rows if row.method is not None and not _offset(row)]
    worked = [set(found) for row in trained if (found := _worked(row, metric))]
    shared = sorted(set.intersection(*worked)) if worked else []
    return shared if len(shared) >= min(2, max((len(row.finals) for row in trained), default=0)) and shared else None


def seeds_by_prompts(row: MethodRuns, metric: str, seeds: Sequence[int] | None = None) -> Floats | None:
    """Return the (S, P) figures of the final runs that worked, in the order of the seeds; None where none did.

    Args:
        row: the runs of a method.
        metric: the figure.
        seeds: places of the runs that count; None means all, as for the base model and a method with its own seeds.
    """
    arrays = [row.finals[place].arrays[metric] for place in _places(row, metric, seeds)]
    return np.stack(arrays) if arrays else None


def _places(row: MethodRuns, metric: str, seeds: Sequence[int] | None) -> list[int]:
    if seeds is None or row.method is None or _offset(row):
        return _worked(row, metric)
    return [place for place in _worked(row, metric) if place in seeds]


def _worked(row: MethodRuns, metric: str) -> list[int]:
    return [place for place, result in enumerate(row.finals) if result.ok and metric in result.arrays]


def _offset(row: MethodRuns) -> int:
    return row.method.seed_offset if row.method is not None else 0


def _metric(rows: Sequence[MethodRuns]) -> str:
    working = [result for row in rows for result in row.finals if result.ok]
    for name in PRIMARY:
        if working and all(name in result.arrays for result in working):
            return name
    reasons = sorted({result.reason for row in rows for result in (*row.trials, *row.finals) if result.reason})
    raise PrefoptError(f"no run produced a figure to compare by: {'; '.join(reasons[:3]) or 'nothing ran'}")


def _order(standing: Standing, better: int) -> float:
    return -better * standing.value.point if standing.value is not None else float("inf")


def _standing(row: MethodRuns, value: Interval | None, places: Sequence[int]) -> Standing:
    working = [row.finals[place] for place in places]
    names = dict.fromkeys(name for result in working for name in result.figures)
    figures = {name: float(np.mean([r.figures[name] for r in working if name in r.figures])) for name in names}
    broken = [result for result in (*row.trials, *row.finals) if not result.ok]
    reason = "; ".join(dict.fromkeys(f"{result.status}: {result.reason}" for result in broken))
    tried = [setting.plain() for setting in row.settings]
    values = strength(row.config.loss, row.config.loss_name)[1]
    return Standing(
        runs=row,
        value=value,
        figures=figures,
        cost=_cost(row),
        edges=at_edge(row.chosen.plain(), tried, values) if row.chosen is not None else [],
        reason=reason,
    )


def _cost(row: MethodRuns) -> dict[str, float]:
    every: list[JobResult] = [*row.trials, *row.finals]

    def column(name: str, of: Sequence[JobResult]) -> list[float]:
        return [float(result.cost[name]) for result in of if result.cost.get(name) is not None]

    def total(name: str) -> float:
        """Add up what every run has; nan where a run that worked lacks it, kept from an earlier version."""
        known = every and not any(result.ok and result.cost.get(name) is None for result in every)
        return math.fsum(column(name, every)) if known else math.nan

    def of_one(name: str) -> float:
        """Average what one final run took; nan where a run that worked lacks it."""
        working = [result for result in row.finals if result.ok]
        found = column(name, working)
        return math.fsum(found) / len(found) if found and len(found) == len(working) else math.nan

    return {
        "trials": float(len(row.settings)),
        "runs": float(len(every)),
        "seconds": round(sum(column("train_seconds", every)) + sum(column("measure_seconds", every)), 2),
        "train_seconds": round(float(np.mean(column("train_seconds", row.finals) or [0.0])), 2),
        "tokens": sum(column("tokens", every)),
        "peak_memory_mib": max(column("peak_memory_mib", every), default=0.0),
        **{name: total(name) for name in TOTALS},
        "tokens_trained": of_one("tokens"),
        **{name: of_one(name) for name in ("tokens_sampled", "tokens_scored", "labels", "reward_model_seconds")},
    }


def _facts(rows: Sequence[MethodRuns]) -> dict[str, Any]:
    config = rows[0].config
    first = fingerprints(config)
    others = {row.name: {k: v for k, v in fingerprints(row.config).items() if v != first.get(k)} for row in rows}
    return {
        "fingerprints": first,
        "other_fingerprints": {name: differing for name, differing in others.items() if differing},
        "model": config.model.path,
        "data": config.data.path,
        "versions": {package: version_of(package) for package in VERSIONS},
        "python": platform.python_version(),
        "machine": f"{os.cpu_count()} cores ({platform.machine()})",
    }


def train_command(comparison: Comparison, row: MethodRuns) -> str:
    """Return the command that repeats one final run of a row."""
    if row.method is None or row.chosen is None:
        return ""
    seed = 1 + row.method.seed_offset
    batch = [f"batch.records={row.config.batch.records}"] if comparison.online(row.method) else []
    words = [*comparison.words(row.method), *batch, *row.chosen.overrides(), f"seed={seed}"]
    change = "on pairs with their sides swapped" if row.method.sides_swapped else ""
    if row.method.reward_change:
        change = f"with rewards {row.method.reward_change}"
    return shlex.join(["prefopt", "train", *words]) + (f"  # {change}" if change else "")


def plain(result: ComparisonOutcome) -> dict[str, Any]:
    """Return the content of `results.json`."""
    verdicts = []
    for pair in result.pairs:
        fields = dataclasses.asdict(pair)
        fields["interval"] = [fields.pop("low"), fields.pop("high")]
        fields["needed"] = {name: fields.pop(name) for name in ("seeds", "prompts", "together")}
        verdicts.append(fields)
    content = {
        "metric": result.metric,
        "methods": [_plain_row(result, s) for s in result.standings],
        "verdicts": verdicts,
        "warnings": result.warnings,
        "comparison": dataclasses.asdict(result.comparison),
        "command": result.command,
        "seconds": round(result.seconds, 1),
        **result.facts,
    }
    cleaned: dict[str, Any] = finite(content)
    return cleaned


def _plain_row(result: ComparisonOutcome, s: Standing) -> dict[str, Any]:
    value = s.value
    return {
        "name": s.name,
        "loss": s.runs.method.loss if s.runs.method is not None else None,
        "ranking": s.ranking,
        "control": s.runs.control,
        "online": s.runs.method is not None and result.comparison.online(s.runs.method),
        **{name: s.cost[name] for name in ONE_RUN},
        "point": value.point if value else None,
        "interval": [value.low, value.high] if value else None,
        "chosen": s.runs.chosen.plain() if s.runs.chosen is not None else None,
        "edges": s.edges,
        "figures": s.figures,
        "cost": s.cost,
        "reason": s.reason,
        "command": train_command(result.comparison, s.runs),
        "by_seed": [r.figures.get(result.metric) for r in s.runs.finals],
        "trials": [
            {"setting": setting.plain(), "status": trial.status, "reason": trial.reason, "figures": trial.figures}
            for setting, trial in zip(s.runs.settings, s.runs.trials, strict=False)
        ],
    }


def write_results(folder: Path, result: ComparisonOutcome) -> None:
    """Write `results.json`."""
    write_json(folder / RESULTS, plain(result))
