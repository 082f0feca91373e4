"""Writes the page of `prefopt demo`, and its table: the methods side by side in the review world."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich import box

from prefopt.common.escaping_console import Table
from prefopt.common.smallest_effects import WORLD_REWARD
from prefopt.compare.demo import BASE, SFT, DemoFacts, DemoRow
from prefopt.evaluate.world import Sample, paired_difference
from prefopt.report.figures import REFERENCE_STYLE, Axes, Curve, Point, Style, scatter, small_chart, styles
from prefopt.report.formatting import listed, number, signed
from prefopt.report.page import render, write_page
from prefopt.worlds.review import WORDS, ReviewWorld

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
    if row.samples is not None:
        figures |= {"samples": row.samples.texts, "tokens_sampled": row.samples.tokens}
    return figures | {"curve": [asdict(point) for point in row.curve]}


def demo_table(rows: Sequence[DemoRow]) -> Table:
    """The models in a table that fits into eighty columns."""
    best, undecided = standing(rows)
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
        mark = " best" if row.name == best else f" {undecided.get(row.name, '')}".rstrip()
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


def standing(rows: Sequence[DemoRow]) -> tuple[str, dict[str, str]]:
    """Return the method with the highest true reward, and those that are not surely worse, prompt by prompt."""
    methods = [row for row in rows if row.is_method]
    best = max(methods, key=lambda row: row.evaluation.true_reward.value)
    found = {row.name: paired_difference(best.evaluation, row.evaluation).verdict(WORLD_REWARD) for row in methods}
    words = {"tie": "tie", "cannot_tell": "cannot tell"}
    return best.name, {name: words[one] for name, one in found.items() if name != best.name and one in words}


def demo_page(rows: Sequence[DemoRow], facts: DemoFacts) -> str:
    """Return the whole page as HTML."""
    methods = [row for row in rows if row.is_method]
    offline = [row for row in methods if row.samples is None]
    look = styles([row.name for row in methods]) | {SFT: REFERENCE_STYLE}
    best, undecided = standing(rows)
    first = rows[0].evaluation
    return render(
        "demo.html",
        **vars(facts),
        rows=rows,
        count=_COUNTS.get(len(offline), str(len(offline))),
        base=first,
        method_list=listed([row.name for row in offline]),
        rlhf=[row for row in methods if row.samples is not None],
        best=[best],
        undecided=undecided,
        smallest=WORLD_REWARD,
        finding=_finding(rows, best, undecided),
        colours={name: style.colour for name, style in look.items()} | {BASE: _BASE_COLOUR},
        frontier=_frontier(rows, look, facts),
        charts=_charts(methods, look, facts.ceiling),
        texts=_texts(rows),
        example=_example(rows),
        prompts=len(first.samples),
        words=len(WORDS),
    )


def _finding(rows: Sequence[DemoRow], best: str, undecided: Mapping[str, str]) -> str:
    by_name = {row.name: row.evaluation for row in rows}
    top, start = by_name[best], by_name[SFT]
    rise = f"from {signed(start.true_reward.value)} (SFT) to {signed(top.true_reward.value)}"
    ties, untold = ([name for name, word in undecided.items() if word == wanted] for wanted in ("tie", "cannot tell"))
    parts = [f"{listed(ties)} {'tie' if len(ties) > 1 else 'ties'} with it"] if ties else []
    parts += [f"{listed(untold)} cannot be told from it"] if untold else []
    but = f", but {' and '.join(parts)} on these prompts" if parts else " by a difference that is no noise and matters"
    who = f"{best} has the highest true reward{but}"
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
    summary = "Reward against KL: " + "; ".join(f"{p.label} KL {number(p.x)} reward {number(p.y)}" for p in points)
    axes = Axes(x="KL to the reference (nats per text)", y="true reward")
    return scatter(points, look, axes, yardstick=yardstick, summary=summary)


def _charts(methods: Sequence[DemoRow], look: dict[str, Style], ceiling: float) -> dict[str, list[Markup]]:
    """Draw the learning curves, a small chart for each method, by heading."""
    points = [point for row in methods for point in row.curve]
    rewards = [point.true_reward for point in points]
    changes = [change for point in points for change in (point.chosen_change, point.rejected_change)]
    lowest = min(50.0, *(100 * point.accuracy for point in points)) - 3

    def charts(
        lines: Mapping[str, str], y_range: tuple[float, float], rules: Sequence[float], scale: float = 1.0
    ) -> list[Markup]:
        return [
            _chart(
                row, look[row.name], lines, Axes(x="step", y="", title=row.name, y_range=y_range, rules=rules), scale
            )
            for row in methods
        ]

    return {
        "True reward": charts({"reward": "true_reward"}, _around(rewards, 0.05), (0,)),
        "Held-out pair accuracy, %": charts(
            {"accuracy": "accuracy"}, (lowest, 100 * ceiling + 4), (50, 100 * ceiling), scale=100.0
        ),
        "Change of log-prob in nats: chosen solid, rejected dashed": charts(
            {"chosen": "chosen_change", "rejected": "rejected_change"}, _around(changes, 0.1), (0,)
        ),
    }


def _chart(row: DemoRow, style: Style, lines: Mapping[str, str], axes: Axes, scale: float) -> Markup:
    """Draw attributes of the points of a method's learning curve, by label."""
    steps = [point.step for point in row.curve]
    curves = [
        Curve(label, steps, [scale * getattr(point, name) for point in row.curve], dashed=label == "rejected")
        for label, name in lines.items()
    ]
    ends = ", ".join(f"{curve.label} from {number(curve.y[0])} to {number(curve.y[-1])}" for curve in curves)
    return small_chart(curves, style, axes, summary=f"{row.name}: {ends}")


def _around(values: Sequence[float], least: float) -> tuple[float, float]:
    """Return the range of the values with a margin."""
    margin = 0.05 * (max(values) - min(values)) + least
    return min(values) - margin, max(values) + margin


def _texts(rows: Sequence[DemoRow]) -> list[dict[str, Any]]:
    """Return what every model wrote for the first test prompts."""
    world = ReviewWorld()
    texts = []
    for i in range(min(TEXTS_SHOWN, len(rows[0].evaluation.samples))):
        samples = {row.name: row.evaluation.samples[i] for row in rows}
        valid = world.valid([f"{s.prompt} {s.completion}" for s in samples.values()])
        lines = [
            {"name": name, "completion": s.completion, "reward": s.reward, "valid": bool(ok)}
            for (name, s), ok in zip(samples.items(), valid, strict=True)
        ]
        texts.append({"prompt": rows[0].evaluation.samples[i].prompt, "lines": lines})
    return texts


def _example(rows: Sequence[DemoRow]) -> Sample:
    """Return a well-formed text of the SFT model; the page works out its reward."""
    sft = next(row for row in rows if row.name == SFT).evaluation.samples
    world = ReviewWorld()
    return next((s for s in sft if world.valid([f"{s.prompt} {s.completion}"])[0]), sft[0])
