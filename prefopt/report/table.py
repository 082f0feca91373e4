"""Base and tuned model side by side: the lines that the page and the terminal show."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefopt.common.estimate import Estimate
from prefopt.report.verdict import plain, shown

# figure of `prefopt.evaluate.held_out`, its words, its unit, and whether more is better (1), worse (-1) or neither (0)
ROWS = (
    ("accuracies/logps", "Chosen is likelier", "%", 1),
    ("accuracies/logps_mean", "… per token", "%", 1),
    ("margins/logps", "Margin", "nats", 1),
    ("margins/logps_mean", "… per token", "nats", 1),
    ("logps/chosen", "Log-prob of chosen", "nats", 0),
    ("logps_mean/chosen", "… per token", "nats", 0),
    ("logps/rejected", "Log-prob of rejected", "nats", 0),
    ("logps_mean/rejected", "… per token", "nats", 0),
)


@dataclass(frozen=True)
class Row:
    """One line of the table of before and after."""

    words: str
    before: str
    after: str
    change: str
    standing: str  # better, worse, tie, or nothing


def held_out_rows(
    before: Mapping[str, Estimate], after: Mapping[str, Estimate], change: Mapping[str, Estimate]
) -> list[Row]:
    """Held-out figures of two models, named as in `prefopt.evaluate.held_out`; `change` is second minus first."""
    rows = []
    for name, words, unit, better in ROWS:
        if name in before and name in after:
            moved = change.get(name)
            was, now = (shown(e, unit, bare=True) for e in (before[name], after[name]))
            by = shown(moved, unit, sign=True, bare=True) if moved else "–"
            rows.append(Row(f"{words}, {unit}", was, now, by, _standing(moved, better)))
    return rows


def _standing(change: Estimate | None, better: int) -> str:
    if change is None or not math.isfinite(change.se):
        return ""
    if change.sign == 0:
        return "tie"
    if not better:
        return "higher" if change.sign > 0 else "lower"
    return "better" if change.sign == better else "worse"


def written_rows(texts: Mapping[str, Any]) -> list[Row]:
    """Length of what both models write, and how often it ends; `texts` as `prefopt.evaluate.texts.Distance.plain`."""

    def estimate(name: str) -> Estimate | None:
        found = texts.get(name)
        if not isinstance(found, dict) or found.get("value") is None:
            return None
        return Estimate(found["value"], math.nan if found.get("se") is None else found["se"], found.get("count", 0))

    rows = []
    before, after, longer = estimate("length_before"), estimate("length"), estimate("longer")
    if before and after and longer:
        was, now = (shown(e, "tokens", bare=True) for e in (before, after))
        standing = {1: "longer", -1: "shorter", 0: "tie"}[longer.sign]
        rows.append(Row("Own texts, tokens", was, now, shown(longer, "tokens", sign=True, bare=True), standing))
    before, after = estimate("ended_before"), estimate("ended")
    if before and after:
        was, now = (shown(e, "%", bare=True) for e in (before, after))
        change = plain(after.value - before.value, "%", sign=True, bare=True)
        rows.append(Row("Own texts that end, %", was, now, change, ""))
    return rows
