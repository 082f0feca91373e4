"""Writes the page of a comparison: the verdicts first, then the evidence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from markupsafe import Markup

from prefopt.common.files import write_text
from prefopt.common.redact import redact
from prefopt.compare.frontier import KLS, AtKL, Runs, at_matched_kl
from prefopt.compare.jobs import JobResult
from prefopt.compare.outcome import ComparisonOutcome, Standing
from prefopt.compare.results import TOTALS, train_command
from prefopt.compare.rounds import MethodRuns
from prefopt.compare.spec import BASE, METRICS, SFT
from prefopt.compare.statistics import verdict_of
from prefopt.report.compare_text import TASK, finding, markdown, task_names
from prefopt.report.figures import (
    REFERENCE_STYLE,
    Axes,
    Curve,
    Dots,
    Point,
    Style,
    dot_chart,
    line_chart,
    scatter,
    small_chart,
    styles,
)
from prefopt.report.formatting import number, signed
from prefopt.report.page import PAGE, render, write_page

Drawn = TypeVar("Drawn")  # a figure, or the element of a page that shows it
TEXTS_SHOWN = 5
BASE_COLOUR = "#98a2b3"
BESIDE = ("kl", "valid", "accuracy", "length")  # columns of the first table, where they were measured


@dataclass(frozen=True)
class _Line:
    """One row of the first table."""

    standing: Standing
    against_best: tuple[str, str]  # a verdict, and what a verdict would take
    against_sft: tuple[str, str]
    tone: str
    online: bool  # it learns from the policy's own samples


def write_comparison(folder: Path, result: ComparisonOutcome) -> None:
    """Write `results.md` and `report.html` beside the `results.json` of a comparison."""
    write_text(folder / "results.md", redact(markdown(result)))
    write_page(folder / PAGE, compare_page(result))


def compare_page(result: ComparisonOutcome) -> str:
    """Return the whole page as HTML."""
    look = looks(result)
    best = result.competitors[0].name if result.competitors else None
    shown = [name for name in METRICS if name != result.metric and any(name in s.figures for s in result.standings)]
    flags = tuple(f"{s.name}: {edge}" for s in result.standings for edge in s.edges)
    trained = [s.cost for s in result.standings if s.runs.method is not None]
    return render(
        "compare.html",
        result=result,
        metric=METRICS[result.metric],
        metrics=METRICS,
        finding=finding(result),
        warnings=[warning for warning in result.warnings if not warning.startswith(flags)],  # shown in their rows
        lines=[_line(result, s, best) for s in result.standings],
        best=best,
        beside=[name for name in BESIDE if name in shown and name != result.metric],
        shown=shown,
        colours={name: style.colour for name, style in look.items()},
        final_models=final_models(result, look, scatter),
        tried_settings=tried_settings(result, look, line_chart),
        tried=[
            (s.name, setting, trial)
            for s in result.standings
            for setting, trial in zip(s.runs.settings, s.runs.trials, strict=False)
        ],
        tasks=_tasks(result),
        total={name: math.fsum(cost[name] for cost in trained) for name in TOTALS},
        matched=_matched(result),
        kls=KLS,
        learning_curves=[chart for s in result.standings if (chart := _learning_curves(s, look[s.name])) is not None],
        held_out_changes=_held_out_changes(result),
        texts=_texts(result),
        commands=[(s.name, train_command(result.comparison, s.runs)) for s in result.standings if s.runs.chosen],
        base_name=BASE,
        sft_name=SFT,
    )


def _line(result: ComparisonOutcome, s: Standing, best: str | None) -> _Line:
    def against(other: str | None) -> tuple[str, str]:
        pair = verdict_of(result.pairs, s.name, other) if other is not None and other != s.name else None
        return (pair.verdict.replace("_", " "), pair.describe_needed()) if pair is not None else ("", "")

    verdict = ("best by number", "") if s.name == best else against(best)
    online = s.runs.method is not None and result.comparison.online(s.runs.method)
    return _Line(s, verdict, against(SFT), {"worse": "down", "better": "up"}.get(verdict[0], ""), online)


def _errors(s: Standing, metric: str) -> tuple[float, float]:
    """Return the standard errors, over seeds, of the KL and of the metric; 0 for a single seed."""
    working = [r.figures for r in s.runs.finals if r.ok]

    def error(name: str) -> float:
        values = [figures[name] for figures in working if name in figures]
        return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0

    return error("kl"), error(metric)


def looks(result: ComparisonOutcome) -> dict[str, Style]:
    """The style of every row in the figures of a comparison."""
    return styles([s.name for s in result.standings if s.name != BASE]) | {BASE: REFERENCE_STYLE}


def final_models(result: ComparisonOutcome, look: Mapping[str, Style], draw: Callable[..., Drawn]) -> Drawn | None:
    """Draw the final models: the metric against the KL."""
    there = [s for s in result.standings if s.value is not None and "kl" in s.figures and not s.runs.control]
    if len(there) < 2:
        return None
    points = [Point(s.name, s.figures["kl"], s.value.point, *_errors(s, result.metric)) for s in there if s.value]
    title = METRICS[result.metric].title
    summary = f"{title} against KL: " + "; ".join(f"{p.label} KL {number(p.x)}, {number(p.y)}" for p in points)
    return draw(points, look, Axes(x="KL to the start (nats per text)", y=title.lower()), summary=summary)


def unbeaten(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points (KL, figure) that no other point beats with at most the same KL."""
    return [i for i, (x, y) in enumerate(points) if not any(u <= x and v > y for u, v in points)]


def _measured_trials(runs: MethodRuns, metric: str) -> list[JobResult]:
    """Return the trials whose KL and figure are known."""
    return [r for r in runs.trials if r.ok and {"kl", metric} <= r.arrays.keys()]


def tried_settings(result: ComparisonOutcome, look: Mapping[str, Style], draw: Callable[..., Drawn]) -> Drawn | None:
    """Draw every setting that was tried: the ends of whole runs, on validation prompts."""
    lines = []
    for s in result.standings:
        points = [(r.figures["kl"], r.figures[result.metric]) for r in _measured_trials(s.runs, result.metric)]
        if len(points) > 1 and not s.runs.control:
            best = [points[i] for i in unbeaten(points)]
            beside = [point for point in points if point not in best]
            lines.append(Curve(label=s.name, x=[x for x, _ in best], y=[y for _, y in best], beside=beside))
    if not lines:
        return None
    title = METRICS[result.metric].in_words
    summary = f"{title} against KL of every setting that was tried, by method"
    return draw(lines, look, Axes(x="KL to the start (nats per text)", y=title), summary=summary)


def _matched(result: ComparisonOutcome) -> list[tuple[str, list[AtKL]]]:
    """Return each method's metric at matched KL, interpolated between its best trials and the start."""
    base = result.standing(BASE)
    found = []
    for s in result.standings:
        trials = _measured_trials(s.runs, result.metric)
        if s.runs.control or s.name == BASE or not trials:
            continue
        start = _measured_trials(base.runs, result.metric) if base else []
        trials = [trials[i] for i in unbeaten([(r.figures["kl"], r.figures[result.metric]) for r in trials])]
        reward, kl = (np.stack([r.arrays[name] for r in (*start, *trials)])[None] for name in (result.metric, "kl"))
        if reward.shape != kl.shape:
            continue
        at = at_matched_kl(Runs(reward, kl))
        if any(math.isfinite(point.value) for point in at):
            found.append((s.name, at))
    return found


def _learning_curves(s: Standing, style: Style) -> Markup | None:
    """Draw every final run: the log-ratios of both sides' texts, or the reward of samples since the first log."""
    curves = [r.curve for r in s.runs.finals if r.ok]
    sampled = any(p.get("reward") is not None for curve in curves for p in curve)
    names = {"reward": "reward"} if sampled else {side: f"ratios/{side}" for side in ("chosen", "rejected")}
    lines = []
    for curve in curves:
        for label, name in names.items():
            points = [(p["step"], p[name]) for p in curve if p.get(name) is not None]
            if len(points) > 1:
                start = points[0][1] if sampled else 0.0  # a log-ratio starts at 0, whatever the batch
                x, y = [x for x, _ in points], [y - start for _, y in points]
                lines.append(Curve(label, x, y, dashed=label == "rejected"))
    if not lines:
        return None
    ends: dict[str, list[float]] = {}
    for line in lines:
        ends.setdefault(line.label, []).append(line.y[-1])
    unit = "" if sampled else " nats"
    moved = ", ".join(f"{label} {signed(float(np.mean(values)))}{unit}" for label, values in ends.items())
    axes = Axes(x="step", y="", title=s.name, rules=(0,))
    return small_chart(lines, style, axes, summary=f"{s.name}: by step {lines[0].x[-1]:.0f}, {moved}")


def _tasks(result: ComparisonOutcome) -> tuple[list[str], list[tuple[str, list[tuple[float, float]]]]]:
    """Return the names of the task figures, and each row's (value, change against base), nan where missing."""
    names = task_names(result)
    base = result.standing(BASE)
    start = base.figures if base is not None else {}

    def cell(s: Standing, name: str) -> tuple[float, float]:
        value = s.figures.get(name, math.nan)
        return value, value - start.get(name, math.nan) if s is not base else math.nan

    rows = [(s.name, [cell(s, name) for name in names]) for s in result.standings if s.value is not None]
    return [name.removeprefix(TASK) for name in names], rows


def _held_out_changes(result: ComparisonOutcome) -> Markup | None:
    """Draw how the log-probs of held-out chosen and rejected texts changed."""
    there = [s for s in result.standings if "chosen_change" in s.figures and s.name != BASE]
    if not there:
        return None

    def dots(name: str, label: str) -> Dots:
        return Dots(label=label, values={s.name: (s.figures[name], 0.0) for s in there if name in s.figures})

    series = [dots("chosen_change", "chosen"), dots("rejected_change", "rejected")]
    summary = "Change of log-prob: " + "; ".join(
        f"{s.name} chosen {number(s.figures['chosen_change'])}, "
        f"rejected {number(s.figures.get('rejected_change', math.nan))}"
        for s in there
    )
    axes = Axes(x="change of held-out log-prob (nats per text)", y="")
    return dot_chart([s.name for s in there], series, styles(["chosen", "rejected"]), axes, summary=summary)


def _texts(result: ComparisonOutcome) -> list[dict[str, Any]]:
    """Return what every model wrote for the first test prompts."""
    written = [(s.name, next((r.texts for r in s.runs.finals if r.ok and r.texts), [])) for s in result.standings]
    written = [(name, texts) for name, texts in written if texts]
    count = min([TEXTS_SHOWN, *(len(texts) for _, texts in written)]) if written else 0
    return [_one_prompt(written, i) for i in range(count)]


def _one_prompt(written: Sequence[tuple[str, list[dict[str, Any]]]], i: int) -> dict[str, Any]:
    lines = [{"name": name, "text": texts[i]["text"], "reward": texts[i].get("reward")} for name, texts in written]
    return {"prompt": written[0][1][i]["prompt"], "lines": lines}
