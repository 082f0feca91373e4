"""The table and the picture of the ladder of sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from markdown_tables import ran_on, table

from prefopt.report.figures import Axes, Curve, line_chart, styles, svg_file
from prefopt.report.formatting import number, signed


def ladder(result: Any) -> str:
    """The reward of each method at each size, the agreement of the orders, and pairwise against pointwise."""
    sizes = result["sizes"]
    names = list(dict.fromkeys(row["name"] for one in sizes for row in one["rows"]))
    rows = [[name, *(_reward(one, name) for one in sizes)] for name in names]
    rows.append(["Kendall's tau with the order at 105k", *(_or_dash(one["agreement"]) for one in sizes)])
    rows.append(["pairwise minus pointwise", *(_groups(one["groups"]) for one in sizes)])
    s = result["setting"]
    told = (
        f"{s['trials']} trials of each method, {s['seeds']} seeds, {s['steps']} steps of {s['pairs']} pairs. "
        "Intervals: 95 %, over prompts and seeds; the last row is one comparison for each size. "
        + ran_on([one["jobs"] for one in sizes])
    )
    heads = [f"{one['weights']:,} weights" for one in sizes]
    return f"{table(['reward', *heads], rows)}\n\n{told}"


def _reward(one: Any, name: str) -> str:
    row = next((row for row in one["rows"] if row["name"] == name and row["point"] is not None), None)
    if row is None:
        return "–"
    edge = ", edge" if row["edges"] else ""
    if None in (row["interval"] or [None]):
        return number(row["point"]) + edge
    low, high = row["interval"]
    return f"{number(row['point'])} ({number(low)} to {number(high)}{edge})"


def _or_dash(value: float | None) -> str:
    return "–" if value is None else number(value)


def _groups(found: Any) -> str:
    if found is None:
        return "–"
    low, high = found["interval"]
    return f"{signed(found['difference'])} ({signed(low)} to {signed(high)}): {found['verdict'].replace('_', ' ')}"


def picture(result: Any) -> str:
    """The reward of each method against the size, with intervals."""
    curves = []
    for name in dict.fromkeys(row["name"] for one in result["sizes"] for row in one["rows"]):
        rows = [(one["weights"], row) for one in result["sizes"] for row in one["rows"]
                if row["name"] == name and row["point"] is not None]  # fmt: skip
        errors = [
            (row["interval"][1] - row["interval"][0]) / (2 * 1.96) if None not in (row["interval"] or [None]) else 0.0
            for _, row in rows
        ]
        x, y = [float(np.log10(weights)) for weights, _ in rows], [row["point"] for _, row in rows]
        curves.append(Curve(label=name, x=x, y=y, y_se=errors))
    axes = Axes(x="log10 of the number of weights", y="true reward, ± one standard error")
    return svg_file(
        line_chart(curves, styles([one.label for one in curves]), axes, summary="Reward by size of the model")
    )


TABLES: dict[str, Callable[[Any], str]] = {"ladder": ladder}
PICTURES: dict[str, Callable[[Any], str]] = {"ladder": picture}
