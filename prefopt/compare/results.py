"""From rows to what can be said: figures with intervals, verdicts, warnings; as JSON, Markdown and a page."""

from __future__ import annotations

import dataclasses
import os
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.common.files import write_json, write_text
from prefopt.common.redact import redact
from prefopt.common.versions import version_of
from prefopt.compare.caveats import doubts
from prefopt.compare.jobs import VERSIONS, Result, finite
from prefopt.compare.rounds import Row, fingerprints
from prefopt.compare.search import at_edge
from prefopt.compare.spec import BASE, METRICS, PRIMARY, SFT, Comparison
from prefopt.compare.statistics import TOO_MANY, Interval, Pair, compare, interval, verdict_of
from prefopt.errors import PrefoptError

Floats = NDArray[np.float64]
TASK = "task/"  # begins the names of figures of tasks


@dataclass(frozen=True, eq=False, kw_only=True)
class Standing:
    """One row of the result.

    Attributes:
        value: of the metric, with its interval; None where no training worked.
        figures: means over the seeds that `value` is of.
        cost: `trials`, `runs`, `seconds` (of training and measuring, all runs), `train_seconds` (of one final run),
            `tokens` (of all runs), `peak_memory_mib`.
        edges: on which axes the chosen setting is at the edge of what was tried.
        reason: why something is missing, or empty.
    """

    row: Row
    value: Interval | None
    figures: dict[str, float]
    cost: dict[str, float]
    edges: list[str]
    reason: str

    @property
    def name(self) -> str:
        """Of the row."""
        return self.row.name

    @property
    def setting(self) -> str:
        """The chosen setting for people, empty for the base model."""
        return str(self.row.chosen) if self.row.chosen is not None else ""


@dataclass(frozen=True, eq=False, kw_only=True)
class Outcome:
    """Everything that the result files and the page say.

    Attributes:
        metric: by which methods are told apart.
        standings: best first, the base model and the controls wherever they fall.
        pairs: every two rows.
        warnings: what makes the result weaker, as sentences.
        command: that made it.
        facts: fingerprints, versions, machine.
    """

    comparison: Comparison
    metric: str
    standings: list[Standing]
    pairs: list[Pair]
    warnings: list[str]
    command: str
    facts: dict[str, Any]
    seconds: float

    def standing(self, name: str) -> Standing | None:
        """The row of this name."""
        return next((s for s in self.standings if s.name == name), None)

    @property
    def competitors(self) -> list[Standing]:
        """Methods that worked, without base, SFT and controls; best first."""
        return [s for s in self.standings if s.value and not s.row.control and s.name not in (BASE, SFT)]


def outcome(comparison: Comparison, rows: Sequence[Row], *, command: str, seconds: float) -> Outcome:
    """What the rows say.

    Raises:
        PrefoptError: nothing could be measured.
    """
    metric = _metric(rows)
    better = METRICS[metric].better
    common = common_seeds(rows, metric)
    places = {row.name: _places(row, metric, common) for row in rows}
    values = {row.name: of for row in rows if (of := seeds_by_prompts(row, metric, common)) is not None}
    found = [_standing(row, values.get(row.name), places[row.name]) for row in rows]
    standings = sorted(found, key=lambda s: _order(s, better))
    numbers = {row.name: [_offset(row) + place for place in places[row.name]] for row in rows}
    untrained = [row.name for row in rows if row.method is None]
    ordered = {s.name: values[s.name] for s in standings if s.name in values}
    pairs = compare(ordered, metric, better=better, numbers=numbers, untrained=untrained)
    return Outcome(
        comparison=comparison,
        metric=metric,
        standings=standings,
        pairs=pairs,
        warnings=doubts(comparison, standings, pairs, values, shared=common is not None),
        command=command,
        facts=_facts(rows),
        seconds=seconds,
    )


def common_seeds(rows: Sequence[Row], metric: str) -> list[int] | None:
    """Places of the final runs that worked for every method with any: a failed one leaves its seed out for all.

    A method with other seed numbers than the rest has no part in this: nothing of it is paired.

    Returns:
        None where that would leave fewer than two, of more that were run: then each method has its own, and those that
        have two in common are compared.
    """
    trained = [row for row in rows if row.method is not None and not _offset(row)]
    worked = [set(found) for row in trained if (found := _worked(row, metric))]
    shared = sorted(set.intersection(*worked)) if worked else []
    return shared if len(shared) >= min(2, max((len(row.finals) for row in trained), default=0)) and shared else None


def seeds_by_prompts(row: Row, metric: str, seeds: Sequence[int] | None = None) -> Floats | None:
    """(S, P) of the final runs that worked, in the order of the seeds; None where none did.

    Args:
        row: the method.
        metric: its figure.
        seeds: places of the runs that count; None, for the model before training, and for a method with seed numbers
            of its own: all.
    """
    arrays = [row.finals[place].arrays[metric] for place in _places(row, metric, seeds)]
    return np.stack(arrays) if arrays else None


def _places(row: Row, metric: str, seeds: Sequence[int] | None) -> list[int]:
    if seeds is None or row.method is None or _offset(row):
        return _worked(row, metric)
    return [place for place in _worked(row, metric) if place in seeds]


def _worked(row: Row, metric: str) -> list[int]:
    return [place for place, result in enumerate(row.finals) if result.ok and metric in result.arrays]


def _offset(row: Row) -> int:
    return row.method.seed_offset if row.method is not None else 0


def _metric(rows: Sequence[Row]) -> str:
    working = [result for row in rows for result in row.finals if result.ok]
    for name in PRIMARY:
        if working and all(name in result.arrays for result in working):
            return name
    reasons = sorted({result.reason for row in rows for result in (*row.trials, *row.finals) if result.reason})
    raise PrefoptError(f"no run gave a figure to compare by: {'; '.join(reasons[:3]) or 'nothing was run'}")


def _order(standing: Standing, better: int) -> float:
    return -better * standing.value.point if standing.value is not None else float("inf")


def _standing(row: Row, values: Floats | None, places: Sequence[int]) -> Standing:
    working = [row.finals[place] for place in places]
    names = dict.fromkeys(name for result in working for name in result.figures)
    figures = {name: float(np.mean([r.figures[name] for r in working if name in r.figures])) for name in names}
    broken = [result for result in (*row.trials, *row.finals) if not result.ok]
    reason = "; ".join(dict.fromkeys(f"{result.status}: {result.reason}" for result in broken))
    tried = [setting.plain() for setting in row.settings]
    return Standing(
        row=row,
        value=interval(values) if values is not None else None,
        figures=figures,
        cost=_cost(row),
        edges=at_edge(row.chosen.plain(), tried) if row.chosen is not None else [],
        reason=reason,
    )


def _cost(row: Row) -> dict[str, float]:
    every: list[Result] = [*row.trials, *row.finals]

    def column(name: str, of: Sequence[Result]) -> list[float]:
        return [float(result.cost[name]) for result in of if result.cost.get(name) is not None]

    return {
        "trials": float(len(row.settings)),
        "runs": float(len(every)),
        "seconds": round(sum(column("train_seconds", every)) + sum(column("measure_seconds", every)), 2),
        "train_seconds": round(float(np.mean(column("train_seconds", row.finals) or [0.0])), 2),
        "tokens": sum(column("tokens", every)),
        "peak_memory_mib": max(column("peak_memory_mib", every), default=0.0),
    }


def _facts(rows: Sequence[Row]) -> dict[str, Any]:
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


def train_command(comparison: Comparison, row: Row) -> str:
    """What repeats one final run of a row by itself."""
    if row.method is None or row.chosen is None:
        return ""
    seed = 1 + row.method.seed_offset
    words = [f"loss={row.method.loss}", *comparison.overrides, *row.method.overrides, *row.chosen.overrides(),
             f"seed={seed}"]  # fmt: skip
    return shlex.join(["prefopt", "train", *words]) + ("  # on pairs turned round" if row.method.sides_swapped else "")


def plain(result: Outcome) -> dict[str, Any]:
    """The content of `results.json`."""
    spec = dataclasses.asdict(result.comparison)
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
        "comparison": spec,
        "command": result.command,
        "seconds": round(result.seconds, 1),
        **result.facts,
    }
    cleaned: dict[str, Any] = finite(content)
    return cleaned


def _plain_row(result: Outcome, s: Standing) -> dict[str, Any]:
    value = s.value
    return {
        "name": s.name,
        "loss": s.row.method.loss if s.row.method is not None else None,
        "control": s.row.control,
        "point": value.point if value else None,
        "interval": [value.low, value.high] if value else None,
        "chosen": s.row.chosen.plain() if s.row.chosen is not None else None,
        "edges": s.edges,
        "figures": s.figures,
        "cost": s.cost,
        "reason": s.reason,
        "command": train_command(result.comparison, s.row),
        "by_seed": [r.figures.get(result.metric) for r in s.row.finals],
        "trials": [
            {"setting": setting.plain(), "status": trial.status, "reason": trial.reason, "figures": trial.figures}
            for setting, trial in zip(s.row.settings, s.row.trials, strict=False)
        ],
    }


def say_verdict(pair: Pair) -> str:
    """A verdict in words, with what it would take where there is none."""
    needed = say_needed(pair)
    return pair.verdict.replace("_", " ") + (f" ({needed})" if needed else "")


def say_needed(pair: Pair) -> str:
    """What it would take to tell: `42 seeds might`; empty where that is not known, or it is told."""
    needs = [
        f"{count:,} {name}" if count <= TOO_MANY else f"more than {TOO_MANY:,} {name}"
        for name, count in (("seeds", pair.seeds), ("prompts", pair.prompts))
        if count
    ]
    return f"{(' and ' if pair.together else ' or ').join(needs)} might" if needs else ""


def finding(result: Outcome) -> list[str]:
    """The result in two or three sentences."""
    rivals = result.competitors
    if not rivals:
        return _finding_without_rivals(result)
    best = rivals[0]
    title = METRICS[result.metric].title.lower()
    equals: list[str] = []
    beaten: list[str] = []
    for other in rivals[1:]:
        pair = verdict_of(result.pairs, best.name, other.name)
        (beaten if pair is not None and pair.verdict == "better" else equals).append(other.name)
    if len(rivals) == 1:
        said = [f"{best.name} is the only method."]
    elif not equals:
        said = [f"{best.name} is better than every other method by {title}."]
    elif not beaten:
        said = [f"No method can be told from {best.name}, which has the best {title} by number alone."]
    else:
        said = [f"{best.name} has the best {title}; it is better than {_list(beaten)}, and cannot be told from "
                f"{_list(equals)}."]  # fmt: skip
    for rival in (SFT, BASE):
        gained = [s.name for s in rivals if (p := verdict_of(result.pairs, s.name, rival)) and p.verdict == "better"]
        lost = [s.name for s in rivals if (p := verdict_of(result.pairs, s.name, rival)) and p.verdict == "worse"]
        who = "SFT on the chosen side" if rival == SFT else "the model before training"
        if len(gained) == len(rivals):
            said.append(f"All are better than {who}.")
        elif gained or lost:
            parts = [f"better than {who}: {_list(gained)}"] if gained else []
            parts += [f"worse: {_list(lost)}"] if lost else []
            text = "; ".join(parts)
            said.append(f"{text[0].upper()}{text[1:]}.")
    return said


def _finding_without_rivals(result: Outcome) -> list[str]:
    sft = result.standing(SFT)
    if sft is None or sft.value is None:
        return ["No method could be measured: see the reasons below."]
    alone = all(method.name == SFT for method in result.comparison.methods)
    first = "SFT is the only method." if alone else "No method but SFT could be measured: see the reasons below."
    pair = verdict_of(result.pairs, SFT, BASE)
    said = {"better": "is better than", "worse": "is worse than", "cannot_tell": "cannot be told from"}
    return [first, *([f"It {said[pair.verdict]} the model before training."] if pair is not None else [])]


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def markdown(result: Outcome) -> str:
    """The content of `results.md`."""
    title = METRICS[result.metric].title
    shown = [name for name in METRICS if name != result.metric and any(name in s.figures for s in result.standings)]
    head = ["", title, *(METRICS[name].title for name in shown), "setting", "trials", "s a run", "tokens", "peak MiB"]
    lines = ["# Comparison", "", *finding(result), "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for s in result.standings:
        value = f"{s.value.point:+.3f} [{s.value.low:+.3f}, {s.value.high:+.3f}]" if s.value else "failed"
        figures = [f"{s.figures[name]:.3g}" if name in s.figures else "–" for name in shown]
        cost = [f"{s.cost['trials']:.0f}", f"{s.cost['train_seconds']:.1f}", f"{s.cost['tokens']:,.0f}",
                f"{s.cost['peak_memory_mib']:.0f}"]  # fmt: skip
        lines.append("| " + " | ".join([s.name, value, *figures, s.setting, *cost]) + " |")
    lines += _task_lines(result)
    lines += ["", "| | against | difference | effect | p (Holm) | verdict |", "|---|---|---:|---:|---:|---|"]
    for pair in result.pairs:
        lines.append(
            f"| {pair.a} | {pair.b} | {pair.difference:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}] | "
            f"{pair.effect:+.2f} | {pair.p_holm:.2g} | {say_verdict(pair)} |"
        )
    lines += ["", *(f"- {warning}" for warning in result.warnings), "", "    " + result.command, ""]
    lines += [f"    {train_command(result.comparison, s.row)}" for s in result.standings if s.row.chosen is not None]
    return "\n".join(lines) + "\n"


def _task_lines(result: Outcome) -> list[str]:
    """Figures of tasks by row, with their change against the model before training."""
    names = sorted({name for s in result.standings for name in s.figures if name.startswith(TASK)})
    base = result.standing(BASE)
    start = base.figures if base is not None else {}

    def cell(s: Standing, name: str) -> str:
        if name not in s.figures:
            return "–"
        change = f" ({s.figures[name] - start[name]:+.3f})" if s is not base and name in start else ""
        return f"{s.figures[name]:.3f}{change}"

    table = [["tasks (change against base)", *(name.removeprefix(TASK) for name in names)]]
    table += [[s.name, *(cell(s, name) for name in names)] for s in result.standings]
    head, *lines = ["| " + " | ".join(cells) + " |" for cells in table]
    return ["", head, "|---" * len(table[0]) + "|", *lines] if names else []


def write_results(folder: Path, result: Outcome) -> None:
    """`results.json`, `results.md` and `report.html` in `folder`."""
    from prefopt.report.compare import compare_page
    from prefopt.report.page import write_page

    write_json(folder / "results.json", plain(result))
    write_text(folder / "results.md", redact(markdown(result)))
    write_page(folder / "report.html", compare_page(result))
