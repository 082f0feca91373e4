"""Writes the page of `prefopt demo`, and its table: the methods side by side in the review world."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich import box
from rich.table import Table

from prefopt.compare.demo import BASE, SFT, DemoFacts, DemoRow
from prefopt.evaluate.world import Sample, paired_difference
from prefopt.report.figures import REFERENCE_STYLE, Axes, Curve, Point, Style, scatter, small_chart, styles
from prefopt.report.formatting import listed, number, signed
from prefopt.report.page import render, write_page
from prefopt.worlds.review import WORDS, ReviewWorld

TIE_STANDARD_ERRORS = 2.0
TEXTS_SHOWN = 5
_BASE_COLOUR = "#98a2b3"
_COUNTS = {1: "One", 2: "Two", 3: "Three", 4: "Four", 5: "Five", 6: "Six", 7: "Seven", 8: "Eight", 9: "Nine"}


def write_demo(folder: Path, rows: Sequence[DemoRow], facts: DemoFacts) -> None:
    """Write `report.html` and `results.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_page(folder / "report.html", demo_page(rows, facts))
    write_page(folder / "results.json", json.dumps([_plain(row) for row in rows], indent=1) + "\n")


def _plain(row: DemoRow) -> dict[str, Any]:
    """A row of `results.json`: figures by name, each with its standard error as `<name>_se`."""
    figures: dict[str, Any] = {"method": row.name.lower(), "setting": row.setting, "seconds": round(row.seconds, 2)}
    for name, estimate in row.evaluation.estimates().items():
        figures |= {name: estimate.value, f"{name}_se": estimate.se}
    return figures | {"curve": [asdict(point) for point in row.curve]}


def demo_table(rows: Sequence[DemoRow]) -> Table:
    """The models in a table that fits into eighty columns."""
    best, tied = standing(rows)
    table = Table(
        title="± is one standard error", title_justify="left", title_style="dim", header_style="bold",
        box=box.SIMPLE_HEAD, show_edge=False,
    )  # fmt: skip
    table.add_column("model")
    headings = ("true\nreward", "KL to\nreference", "pair\nacc.", "Δ logp\nchosen", "Δ logp\nrej.")
    for heading in (*headings, "len.", "valid", "sec."):
        table.add_column(heading, justify="right")
    for row in rows:
        e, reference = row.evaluation, row.is_reference
        mark = " best" if row.name == best else " tie" if row.name in tied else ""
        table.add_row(
            f"[bold]{row.name}[/bold][cyan]{mark}[/cyan]",
            f"{signed(e.true_reward.value)} ±{number(e.true_reward.se)}",
            "0" if reference else f"{number(e.kl.value)} ±{number(e.kl.se)}",
            "–" if reference else f"{100 * e.accuracy.value:.0f} %",
            "0" if reference else signed(e.chosen_change.value),
            "0" if reference else signed(e.rejected_change.value),
            number(e.length.value, 1),
            f"{100 * e.valid.value:.0f} %",
            number(row.seconds, 1),
            end_section=reference,
        )
    return table


def standing(rows: Sequence[DemoRow]) -> tuple[str, list[str]]:
    """Return the method with the highest true reward, and those within two standard errors of it, prompt by prompt."""
    methods = [row for row in rows if row.is_method]
    best = max(methods, key=lambda row: row.evaluation.true_reward.value)
    tied = []
    for row in methods:
        gap = paired_difference(best.evaluation, row.evaluation)
        if row is not best and gap.value <= TIE_STANDARD_ERRORS * gap.se:
            tied.append(row.name)
    return best.name, tied


def demo_page(rows: Sequence[DemoRow], facts: DemoFacts) -> str:
    """Return the whole page as HTML."""
    methods = [row for row in rows if row.is_method]
    look = styles([row.name for row in methods]) | {SFT: REFERENCE_STYLE}
    best, tied = standing(rows)
    first = rows[0].evaluation
    return render(
        "demo.html",
        rows=rows,
        methods=methods,
        count=_COUNTS.get(len(methods), str(len(methods))),
        base=first,
        method_list=listed([row.name for row in methods]),
        best=[best],
        tied=tied,
        finding=_finding(rows, best, tied),
        colours={name: style.colour for name, style in look.items()} | {BASE: _BASE_COLOUR},
        frontier=_frontier(rows, look, facts),
        reward_curves=_reward_curves(methods, look),
        accuracy_curves=_accuracy_curves(methods, look, facts.ceiling),
        logp_curves=_logp_curves(methods, look),
        texts=_texts(rows),
        example=_example(rows),
        prompts=len(first.samples),
        samples=number(len(first.samples) * facts.samples_per_prompt, 0),
        pairs_text=f"{facts.world.pairs:,}",
        temperature=facts.world.label_temperature,
        words=len(WORDS),
        curve_prompts=facts.curve_prompts,
        heldout=facts.heldout,
        ceiling=facts.ceiling,
        parameters=f"{facts.parameters:,}",
        steps=facts.steps,
        batch=facts.batch,
        seed=facts.seed,
        total_seconds=facts.total_seconds,
        machine=facts.machine,
        versions=facts.versions,
    )


def _finding(rows: Sequence[DemoRow], best: str, tied: Sequence[str]) -> str:
    by_name = {row.name: row.evaluation for row in rows}
    top, start = by_name[best], by_name[SFT]
    rise = f"from {signed(start.true_reward.value)} (SFT) to {signed(top.true_reward.value)}"
    if tied:
        who = f"{best} has the highest true reward, but {listed(tied)} cannot be told from it on these prompts"
    else:
        who = f"{best} has the highest true reward by more than two standard errors"
    frugal = min((row for row in rows if row.is_method), key=lambda row: row.evaluation.kl.value)
    if frugal.name == best:
        near = "No other method stayed closer to SFT"
    else:
        near = f"{frugal.name} stayed closest to SFT, at {number(frugal.evaluation.kl.value)} nats"
    return f"{who}: {rise}, at a KL of {number(top.kl.value)} nats. {near}."


def _frontier(rows: Sequence[DemoRow], look: dict[str, Style], facts: DemoFacts) -> Markup:
    points = [
        Point(row.name, row.evaluation.kl.value, row.evaluation.true_reward.value,
              row.evaluation.kl.se, row.evaluation.true_reward.se)
        for row in rows
        if row.name != BASE
    ]  # fmt: skip
    furthest = max(point.x for point in points)
    reached = [(n, kl, e.value) for n, kl, e in facts.best_of_n if kl <= 1.15 * furthest]
    yardstick = Curve(f"best of n (n = {reached[-1][0]})", [kl for _, kl, _ in reached], [r for _, _, r in reached])
    summary = "Reward against KL: " + "; ".join(f"{p.label} KL {p.x:.2f} reward {p.y:.2f}" for p in points)
    axes = Axes(x="KL to the reference (nats per text)", y="true reward")
    return scatter(points, look, axes, yardstick=yardstick, summary=summary)


def _reward_curves(methods: Sequence[DemoRow], look: dict[str, Style]) -> list[Markup]:
    every = [point.true_reward for row in methods for point in row.curve]
    margin = 0.05 * (max(every) - min(every)) + 0.05
    charts = []
    for row in methods:
        line = Curve("reward", [point.step for point in row.curve], [point.true_reward for point in row.curve])
        axes = Axes(x="step", y="", title=row.name, y_range=(min(every) - margin, max(every) + margin), rules=(0,))
        summary = f"{row.name}: true reward {signed(line.y[0])} at the start, {signed(line.y[-1])} at the end"
        charts.append(small_chart([line], look[row.name], axes, summary=summary))
    return charts


def _accuracy_curves(methods: Sequence[DemoRow], look: dict[str, Style], ceiling: float) -> list[Markup]:
    low = min(50.0, *(100 * point.accuracy for row in methods for point in row.curve)) - 3
    charts = []
    for row in methods:
        steps = [point.step for point in row.curve]
        line = Curve("accuracy", steps, [100 * point.accuracy for point in row.curve])
        axes = Axes(x="step", y="", title=row.name, y_range=(low, 100 * ceiling + 4), rules=(50, 100 * ceiling))
        summary = f"{row.name}: held-out accuracy {line.y[0]:.0f} % at step {steps[0]}, {line.y[-1]:.0f} % at the end"
        charts.append(small_chart([line], look[row.name], axes, summary=summary))
    return charts


def _logp_curves(methods: Sequence[DemoRow], look: dict[str, Style]) -> list[Markup]:
    every = [v for row in methods for p in row.curve for v in (p.chosen_change, p.rejected_change)]
    margin = 0.05 * (max(every) - min(every)) + 0.1
    charts = []
    for row in methods:
        steps = [point.step for point in row.curve]
        chosen = Curve("chosen", steps, [point.chosen_change for point in row.curve])
        rejected = Curve("rejected", steps, [point.rejected_change for point in row.curve], dashed=True)
        axes = Axes(x="step", y="", title=row.name, y_range=(min(every) - margin, max(every) + margin), rules=(0,))
        summary = f"{row.name}: chosen {signed(chosen.y[-1])} nats at the end, rejected {signed(rejected.y[-1])}"
        charts.append(small_chart([chosen, rejected], look[row.name], axes, summary=summary))
    return charts


@dataclass(frozen=True)
class _Said:
    name: str
    completion: str
    reward: float
    valid: bool


@dataclass(frozen=True)
class _Text:
    prompt: str
    lines: Sequence[_Said]


def _texts(rows: Sequence[DemoRow]) -> list[_Text]:
    world = ReviewWorld()
    texts = []
    for i in range(min(TEXTS_SHOWN, len(rows[0].evaluation.samples))):
        said = [(row.name, row.evaluation.samples[i]) for row in rows]
        lines = [
            _Said(name, s.completion, s.reward, bool(world.valid([f"{s.prompt} {s.completion}"])[0]))
            for name, s in said
        ]
        texts.append(_Text(said[0][1].prompt, lines))
    return texts


def _example(rows: Sequence[DemoRow]) -> Sample:
    """Return a well-formed text of the SFT model; the page works out its reward."""
    sft = next(row for row in rows if row.name == SFT).evaluation.samples
    world = ReviewWorld()
    return next((s for s in sft if world.valid([f"{s.prompt} {s.completion}"])[0]), sft[0])
