"""Tabulates the base and the tuned model side by side, for the page, the terminal and the model card."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefopt.common.estimate import Estimate
from prefopt.report.formatting import with_error, with_unit

# figure of `prefopt.evaluate.held_out`, title, unit, and whether more is better (1), worse (-1) or neither (0)
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
class BeforeAfter:
    """A figure of the base and of the tuned model, as text."""

    title: str
    before: str
    after: str
    change: str
    direction: str = ""  # better, worse, higher, lower, longer, shorter, tie, or empty


def held_out_rows(
    before: Mapping[str, Estimate], after: Mapping[str, Estimate], change: Mapping[str, Estimate]
) -> list[BeforeAfter]:
    """Tabulate held-out figures of two models; `change` is the second model minus the first."""
    rows = []
    for name, title, unit, better in ROWS:
        if name in before and name in after:
            moved = change.get(name)
            was, now = (with_error(e, unit, bare=True) for e in (before[name], after[name]))
            by = with_error(moved, unit, sign=True, bare=True) if moved else "–"
            rows.append(BeforeAfter(f"{title}, {unit}", was, now, by, _direction(moved, better)))
    return rows


def _direction(change: Estimate | None, better: int) -> str:
    if change is None or not math.isfinite(change.se):
        return ""
    if change.sign == 0:
        return "tie"
    if not better:
        return "higher" if change.sign > 0 else "lower"
    return "better" if change.sign == better else "worse"


def written_rows(texts: Mapping[str, Any]) -> list[BeforeAfter]:
    """Tabulate the length of both models' texts and how often they end; `texts` is `Distance.plain()`."""

    def estimate(name: str) -> Estimate | None:
        found = texts.get(name)
        if not isinstance(found, dict) or found.get("value") is None:
            return None
        return Estimate(found["value"], math.nan if found.get("se") is None else found["se"], found.get("count", 0))

    rows = []
    before, after, risen = estimate("reward_before"), estimate("reward"), estimate("reward_change")
    if before and after and risen:
        was, now = (with_error(e, "", bare=True) for e in (before, after))
        change = with_error(risen, "", sign=True, bare=True)
        rows.append(BeforeAfter("Own texts, reward", was, now, change, _direction(risen, better=1)))
    before, after, longer = estimate("length_before"), estimate("length"), estimate("longer")
    if before and after and longer:
        was, now = (with_error(e, "tokens", bare=True) for e in (before, after))
        direction = {1: "longer", -1: "shorter", 0: "tie"}[longer.sign]
        change = with_error(longer, "tokens", sign=True, bare=True)
        rows.append(BeforeAfter("Own texts, tokens", was, now, change, direction))
    before, after = estimate("ended_before"), estimate("ended")
    if before and after:
        was, now = (with_error(e, "%", bare=True) for e in (before, after))
        change = with_unit(after.value - before.value, "%", sign=True, bare=True)
        rows.append(BeforeAfter("Own texts that end, %", was, now, change))
    return rows
