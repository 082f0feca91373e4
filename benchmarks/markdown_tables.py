"""Markdown tables and texts for the pages that `tables.py` writes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prefopt.report.formatting import number

Row = Mapping[str, Any]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is left-aligned."""
    lines = ["| " + " | ".join(headings) + " |", "|:---|" + "---:|" * (len(headings) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def formatted(columns: Mapping[str, tuple[str, str]], rows: Sequence[Row]) -> str:
    """A table of named figures: `columns` maps a key of the rows to (heading, format).

    A dash stands for a missing figure; a column without any figure is left out.
    """
    shown = {key: column for key, column in columns.items() if any(row.get(key) is not None for row in rows)}
    cells = [
        [form.format(row[key]) if row.get(key) is not None else "–" for key, (_, form) in shown.items()] for row in rows
    ]
    return table([heading for heading, _ in shown.values()], cells)


def predictions_table(predictions: Sequence[Row], figure: Callable[[Sequence[Any]], float | None]) -> str:
    """What was predicted, what was found, and whether it held.

    Args:
        predictions: a claim each, that `left` is at least `factor` (1) times `right`, plus `by` (0).
        figure: the number that `left` or `right` names; None where it was not measured.
    """
    rows = []
    for said in predictions:
        left, right = figure(said["left"]), figure(said["right"])
        if left is None or right is None:
            rows.append([said["claim"], "–", "not run"])
            continue
        held = left >= said.get("factor", 1.0) * right + said.get("by", 0.0)
        rows.append([said["claim"], f"{number(left)} against {number(right)}", "yes" if held else "**no**"])
    return table(["predicted", "found", "held"], rows)


def ran_on(provenances: Sequence[Row]) -> str:
    """A sentence on where the jobs of a suite ran, from what `committed.provenance` found."""
    counts: Counter[str] = Counter()
    for one in provenances:
        counts.update(one["processors"])
    moved = sum(one["draws_in_several_versions"] for one in provenances)
    differ = f" Draws of the data that differ between machines by rounding: {moved}." if moved else ""
    return "Jobs: " + ", ".join(f"{count} on {name}" for name, count in counts.items()) + "." + differ


def quoted(text: str) -> str:
    """A text on one line, with Markdown escaped."""
    return re.sub(r"([\\`*_<>#\[\]|])", r"\\\1", " ".join(text.split()))
