"""Writes the page of one run from the files in its folder alone, so that it can be made again at any time."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from prefopt.data.account import account
from prefopt.errors import PrefoptError, UserError
from prefopt.report.bands import State
from prefopt.report.before_after import LEGEND, held_out_rows, reward_model_rows, written_rows
from prefopt.report.figures import Axes, Curve, Style, small_chart
from prefopt.report.formatting import with_error, with_unit
from prefopt.report.page import render, write_page
from prefopt.report.run_facts import RunFacts
from prefopt.report.text_diff import marked
from prefopt.report.verdict import judge, sentinel_warnings
from prefopt.runs.run_folder import RunFolder

PAGE = "report.html"
TEXTS_SHOWN, REJECTIONS_SHOWN = 8, 12
POINTS = 60  # of a curve; more are averaged in groups, so that a long run stays readable
WORDS = {State.GOOD: "healthy", State.LOOK: "look", State.BAD: "trouble"}
_CURVE = Style("#0072B2", "o")

# for each line the names in metrics.jsonl of which the first present is drawn; the title; the unit
CHARTS: tuple[tuple[tuple[tuple[str, ...], ...], str, str], ...] = (
    ((("loss",),), "Loss", ""),
    ((("reward",),), "Reward of samples", ""),
    ((("kl",),), "KL to the reference", "nats per text"),
    ((("rewards/accuracies", "accuracies/logps"),), "Accuracy", "share of pairs"),
    ((("rewards/margins", "margins/logps"),), "Margin", "reward"),
    ((("ratios/chosen", "logps/chosen"), ("ratios/rejected", "logps/rejected")), "Log-prob", "nats"),
    ((("eval_kl",),), "KL to the base model", "nats per text"),
    ((("grad_norm",),), "Gradient norm", ""),
    ((("learning_rate",),), "Learning rate", ""),
    ((("tokens_per_second",),), "Speed", "tokens a second"),
)


def write_run_page(folder: Any) -> str:
    """Write `report.html` into a run's folder and return its path.

    Raises:
        UserError: not the folder of a run, or its files are not what a run writes.
    """
    run = RunFolder.open(folder)
    path = run.path / PAGE
    try:
        page = run_page(run)
    except PrefoptError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise UserError(
            f"the files in {run.path} are not what a run writes ({type(error).__name__}: {error})"
        ) from error
    write_page(path, page)
    return str(path)


def run_page(run: RunFolder) -> str:
    """Return the whole page as HTML."""
    facts, verdict = RunFacts(run), judge(run)
    model, data = run.config.get("model", {}), run.config.get("data", {})
    return render(
        "run.html",
        name=facts.name,
        method=facts.method,
        model=str(model.get("path")),
        reference=run.start,
        data=Path(str(data.get("path") or "a mixture")).name,
        verdict=verdict,
        words=WORDS,
        rows=held_out_rows(facts.before, facts.after, facts.change),
        records=next((e.count for e in facts.change.values() if e.count), 0),
        legend=LEGEND,
        with_errors=facts.held_out is not None,
        scores=facts.scores.get("after", {}),
        scored=reward_model_rows(facts.scores),
        grew=with_error(facts.banded["grew"], "%") if "grew" in facts.banded else None,
        written=written_rows(run.summary.get("texts", {})),
        charts=_charts(run.metrics),
        texts=[_marked(sample) for sample in run.lines("samples.jsonl")[:TEXTS_SHOWN]],
        drawn=_drawn(run.lines("rollouts.jsonl")),
        card=_card(run),
        rejections=_rejections(run.lines("rejections.jsonl")),
        cost=_cost(run),
        warnings=sentinel_warnings(run),
        command=command(run),
        folder=str(run.path),
        started=str(run.manifest.get("started", "")),
        versions=_versions(run.manifest.get("versions", {})),
    )


def command(run: RunFolder) -> str:
    """Return the command that repeats the run in a folder of its own."""
    return shlex.join(["prefopt", "train", *run.overrides()])


def _charts(metrics: Sequence[Mapping[str, Any]]) -> list[Markup]:
    charts = []
    for groups, title, unit in CHARTS:
        lines = []
        for i, names in enumerate(groups):
            name = next((n for n in names if any(_number(m.get(n)) for m in metrics)), None)
            if name is not None:
                lines.append(_line(metrics, name, dashed=i > 0))
        if lines and any(len(line.x) > 1 for line in lines):
            summary = f"{title} by step: " + "; ".join(
                f"{line.label} from {line.y[0]:.4g} to {line.y[-1]:.4g}" for line in lines
            )
            charts.append(small_chart(lines, _CURVE, Axes(x="step", y=unit, title=title), summary=summary))
    return charts


def _line(metrics: Sequence[Mapping[str, Any]], name: str, *, dashed: bool) -> Curve:
    points = [(m["step"], m[name]) for m in metrics if _number(m.get(name))]
    size = -(-len(points) // POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return Curve(name, [_mean([x for x, _ in g]) for g in groups], [_mean([y for _, y in g]) for g in groups], dashed)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _marked(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return a text before and after, with the words that only one of them has marked."""
    before, after = str(sample.get("before", "")), str(sample.get("after", ""))
    left, right = marked(before, after)
    return {"prompt": str(sample.get("prompt", "")), "before": left, "after": right, "same": before == after}


def _drawn(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the samples of one prompt, of the first and of the last rollout, best first."""
    steps = sorted({row["step"] for row in rows})
    found = []
    for step in dict.fromkeys([*steps[:1], *steps[-1:]]):
        first = next(row["prompt"] for row in rows if row["step"] == step)
        samples = [row for row in rows if (row["step"], row["prompt"]) == (step, first)]
        found.append({"step": step, "prompt": str(first), "samples": sorted(samples, key=lambda row: -row["reward"])})
    return found


def _card(run: RunFolder) -> list[tuple[str, str]]:
    data = run.manifest.get("data", {})
    counts: Mapping[str, Any] = data.get("counts", run.summary.get("counts", {}))
    given = run.config.get("data", {})
    card = [("Source", str(given.get("path") or ", ".join(str(s) for s in given.get("mixture", []))))]
    if data.get("schema"):
        card.append(("Recognised as", str(data["schema"])))
    for key, words in (("rows", "Rows read"), ("train", "Records to train on"), ("eval", "Records held out"),
                       ("truncated_prompts", "Prompts truncated")):  # fmt: skip
        if key in counts:
            card.append((words, f"{counts[key]:,}"))
    for line in account(counts):
        name, _, words = line.partition(": ")
        card.append((name.capitalize(), words))
    last: Mapping[str, Any] = next((m for m in reversed(run.metrics) if "lengths/chosen" in m), {})
    held: Mapping[str, Any] = run.summary.get("after", {})
    for side in ("chosen", "rejected"):
        length = held.get(f"lengths/{side}", last.get(f"lengths/{side}"))
        if _number(length):
            card.append((f"Mean length, {side}", f"{with_unit(float(length), 'tokens')}"))
    return card


def _rejections(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the reasons with their counts and an example each, the most frequent first."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        reason = str(row.get("reason", "?"))
        entry = found.setdefault(reason, {"reason": reason, "count": 0, "detail": str(row.get("detail", ""))})
        entry["count"] += 1
    return sorted(found.values(), key=lambda e: (-e["count"], e["reason"]))[:REJECTIONS_SHOWN]


def _cost(run: RunFolder) -> list[tuple[str, str]]:
    summary, cost = run.summary, []
    seconds: Mapping[str, Any] = summary.get("seconds", {})
    for key, words in (("train", "Training"), ("total", "The whole run")):
        if _number(seconds.get(key)):
            cost.append((words, duration(float(seconds[key]))))
    if "steps" in summary:
        cost.append(("Optimizer steps", f"{summary['steps']:,}"))
    speeds = [m["tokens_per_second"] for m in run.metrics if _number(m.get("tokens_per_second"))]
    if speeds:
        cost.append(("Speed", f"{_mean(speeds):,.0f} tokens a second"))
    if _number(summary.get("memory_gib")):
        cost.append(("Peak memory", f"{summary['memory_gib']:.2f} GiB"))
    if (reference := summary.get("reference")) and any(reference.values()):
        cost.append(("Reference log-probs", f"{reference.get('computed', 0):,} computed, "
                                            f"{reference.get('found', 0):,} reused from earlier runs"))  # fmt: skip
    if layout := summary.get("layout"):
        cost.append(("Token layout", str(layout.get("layout", "")) if isinstance(layout, dict) else str(layout)))
    cost.append(("Machine", str(run.manifest.get("platform", "unknown"))))
    return cost


def duration(seconds: float) -> str:
    """Format a duration: 42 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _versions(versions: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items() if number)
