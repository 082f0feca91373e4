"""From rows to what can be said: figures with intervals, verdicts, warnings; as JSON, Markdown and a page."""

from __future__ import annotations

import dataclasses
import os
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.compare.contest import Row, fingerprints
from prefopt.compare.jobs import VERSIONS, Result, finite
from prefopt.compare.search import at_edge
from prefopt.compare.spec import AGAIN, BASE, METRICS, PRIMARY, SFT, WRONG_SIGN, Comparison
from prefopt.compare.statistics import Interval, Pair, compare, interval, verdict_of
from prefopt.errors import PrefoptError
from prefopt.folder import write, write_json

Floats = NDArray[np.float64]
FEW_TRIALS, FEW_SEEDS, FEW_PROMPTS = 3, 3, 100
UNEQUAL_VALIDITY = 0.1  # difference of shares of valid texts that makes rewards hard to compare
UNEQUAL_KL = 2.0  # ratio of distances


@dataclass(frozen=True, eq=False, kw_only=True)
class Standing:
    """One row of the result.

    Attributes:
        value: of the metric, with its interval; None where no training worked.
        figures: means over the seeds.
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
    seeds = common_seeds(rows, metric)
    values = {row.name: of for row in rows if (of := seeds_by_prompts(row, metric, seeds)) is not None}
    standings = sorted((_standing(row, values.get(row.name)) for row in rows), key=lambda s: _order(s, better))
    pairs = compare({s.name: values[s.name] for s in standings if s.name in values}, metric, better=better)
    return Outcome(
        comparison=comparison,
        metric=metric,
        standings=standings,
        pairs=pairs,
        warnings=_warnings(comparison, standings, pairs, values),
        command=command,
        facts=_facts(rows),
        seconds=seconds,
    )


def common_seeds(rows: Sequence[Row], metric: str) -> list[int] | None:
    """Places of the final runs that worked for every method with any: a failed one leaves its seed out for all.

    None where that would leave nothing: then each method has its own.
    """
    worked = [
        {place for place, result in enumerate(row.finals) if result.ok and metric in result.arrays}
        for row in rows
        if row.method is not None
    ]
    worked = [places for places in worked if places]
    return sorted(set.intersection(*worked)) or None if worked else None


def seeds_by_prompts(row: Row, metric: str, seeds: Sequence[int] | None = None) -> Floats | None:
    """(S, P) of the final runs that worked, in the order of the seeds; None where none did.

    Args:
        row: the method.
        metric: its figure.
        seeds: places of the runs that count; None, and for the model before training: all.
    """
    wanted = range(len(row.finals)) if seeds is None or row.method is None else seeds
    runs = [row.finals[place] for place in wanted if place < len(row.finals)]
    arrays = [result.arrays[metric] for result in runs if result.ok and metric in result.arrays]
    return np.stack(arrays) if arrays else None


def _metric(rows: Sequence[Row]) -> str:
    working = [result for row in rows for result in row.finals if result.ok]
    for name in PRIMARY:
        if working and all(name in result.arrays for result in working):
            return name
    reasons = sorted({result.reason for row in rows for result in (*row.trials, *row.finals) if result.reason})
    raise PrefoptError(f"no run gave a figure to compare by: {'; '.join(reasons[:3]) or 'nothing was run'}")


def _order(standing: Standing, better: int) -> float:
    return -better * standing.value.point if standing.value is not None else float("inf")


def _standing(row: Row, values: Floats | None) -> Standing:
    working = [result for result in row.finals if result.ok]
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


def _warnings(
    comparison: Comparison, standings: Sequence[Standing], pairs: Sequence[Pair], values: dict[str, Floats]
) -> list[str]:
    found = []
    for s in standings:
        if s.reason:
            found.append(f"{s.name}: {s.reason}")
        found += [f"{s.name}: {w}" for w in dict.fromkeys(w for result in s.row.finals for w in result.warnings)]
    edges = [f"{s.name}: {edge}" for s in standings for edge in s.edges]
    if edges and comparison.budget.trials >= FEW_TRIALS:
        found.append(f"{'; '.join(edges)}: what lies beyond was not tried, and may be better")
    if comparison.budget.trials == 1:
        found.append("one setting a method, taken without a trial: another may be better")
    elif comparison.budget.trials < FEW_TRIALS:
        found.append(f"{comparison.budget.trials} trials a method: too few to see whether a setting is at its best")
    if comparison.seeds < FEW_SEEDS:
        found.append(f"{comparison.seeds} seeds: the verdicts take all methods to be about as noisy as each other")
    prompts = max((v.shape[1] for v in values.values()), default=0)
    if prompts < FEW_PROMPTS:
        found.append(f"{prompts} test prompts: few; more would narrow the intervals")
    rivals = [s for s in standings if s.value and not s.row.control and s.name != BASE]
    valid = {s.name: s.figures["valid"] for s in rivals if "valid" in s.figures}
    if valid and max(valid.values()) - min(valid.values()) > UNEQUAL_VALIDITY:
        low, high = min(valid, key=valid.__getitem__), max(valid, key=valid.__getitem__)
        found.append(f"unequal validity: {valid[low]:.0%} of {low}'s texts are valid, {valid[high]:.0%} of {high}'s")
    distances = {s.name: s.figures["kl"] for s in rivals if s.figures.get("kl", 0) > 0 and s.name != SFT}
    if distances and max(distances.values()) > UNEQUAL_KL * min(distances.values()):
        near, far = min(distances, key=distances.__getitem__), max(distances, key=distances.__getitem__)
        found.append(f"unequal distance: {near} went {distances[near]:.2f} nats from the start, {far} "
                     f"{distances[far]:.2f}; look at the metric at matched KL, too")  # fmt: skip
    return _broken_controls(comparison, pairs) + found


def _broken_controls(comparison: Comparison, pairs: Sequence[Pair]) -> list[str]:
    """A comparison whose controls come out wrong cannot be trusted, and says so."""
    if not comparison.controls:
        return []
    first = comparison.methods[0].name
    twin, wrong = verdict_of(pairs, first, f"{first}_{AGAIN}"), verdict_of(pairs, WRONG_SIGN, first)
    found = []
    if twin is None or twin.verdict != "cannot_tell":
        found.append(f"CONTROL FAILED: {first} was told from itself under a second name; do not trust these verdicts")
    if wrong is None or wrong.verdict != "worse":
        found.append(f"CONTROL FAILED: the wrong-sign loss was not told to be worse than {first}; this comparison "
                     "has too few seeds, prompts or steps to tell anything")  # fmt: skip
    return found


def _facts(rows: Sequence[Row]) -> dict[str, Any]:
    config = rows[0].config
    return {
        "fingerprints": fingerprints(config),
        "model": config.model.path,
        "data": config.data.path,
        "versions": {package: version(package) for package in VERSIONS},
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
        fields["needed"] = {"seeds": fields.pop("seeds"), "prompts": fields.pop("prompts")}
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
    """What it would take to tell: `42 seeds might`; empty where nothing would, or it is told."""
    needs = [f"{count:,} {name}" for name, count in (("seeds", pair.seeds), ("prompts", pair.prompts)) if count]
    return f"{' or '.join(needs)} might" if needs else ""


def finding(result: Outcome) -> list[str]:
    """The result in two or three sentences."""
    rivals = result.competitors
    if not rivals:
        return ["No method could be measured: see the reasons below."]
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
    lines += ["", "| | against | difference | effect | p (Holm) | verdict |", "|---|---|---:|---:|---:|---|"]
    for pair in result.pairs:
        lines.append(
            f"| {pair.a} | {pair.b} | {pair.difference:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}] | "
            f"{pair.effect:+.2f} | {pair.p_holm:.2g} | {say_verdict(pair)} |"
        )
    lines += ["", *(f"- {warning}" for warning in result.warnings), "", "    " + result.command, ""]
    lines += [f"    {train_command(result.comparison, s.row)}" for s in result.standings if s.row.chosen is not None]
    return "\n".join(lines) + "\n"


def write_results(folder: Path, result: Outcome) -> None:
    """`results.json`, `results.md` and `report.html` in `folder`."""
    from prefopt.compare.page import compare_page
    from prefopt.report.page import write_page

    write_json(folder / "results.json", plain(result))
    write(folder / "results.md", markdown(result))
    write_page(folder / "report.html", compare_page(result))
