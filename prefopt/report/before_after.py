"""Tabulates the base and the tuned model side by side, for the page, the terminal and the model card."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefopt.common.estimate import Estimate
from prefopt.common.smallest_effects import DEVIATIONS, LENGTH, MARGIN, PER_TOKEN, SHARE
from prefopt.report.formatting import with_error, with_unit

# figure of `prefopt.evaluate.held_out`, title, unit, the smallest change that matters, and the words for more and less
BETTER, HIGHER, LONGER = ("better", "worse"), ("higher", "lower"), ("longer", "shorter")
ROWS = (
    ("accuracies/logps", "Chosen is likelier", "%", SHARE, BETTER),
    ("accuracies/logps_mean", "… per token", "%", SHARE, BETTER),
    ("margins/logps", "Margin", "nats", MARGIN, BETTER),
    ("margins/logps_mean", "… per token", "nats", PER_TOKEN, BETTER),
    ("logps/chosen", "Log-prob of chosen", "nats", MARGIN, HIGHER),
    ("logps_mean/chosen", "… per token", "nats", PER_TOKEN, HIGHER),
    ("logps/rejected", "Log-prob of rejected", "nats", MARGIN, HIGHER),
    ("logps_mean/rejected", "… per token", "nats", PER_TOKEN, HIGHER),
)
LEGEND = ("± is one standard error. “tie”: the change, give or take two of them, is too small to matter; "
          "“cannot tell”: it may matter or not.")  # fmt: skip


@dataclass(frozen=True)
class BeforeAfter:
    """A figure of the base and of the tuned model, as text."""

    title: str
    before: str
    after: str
    change: str
    direction: str = ""  # better, worse, higher, lower, longer, shorter, tie, cannot tell, or empty


def held_out_rows(
    before: Mapping[str, Estimate], after: Mapping[str, Estimate], change: Mapping[str, Estimate]
) -> list[BeforeAfter]:
    """Tabulate held-out figures of two models; `change` is the second model minus the first."""
    rows = []
    for name, title, unit, least, words in ROWS:
        if name in before and name in after:
            moved = change.get(name)
            was, now = (with_error(e, unit, bare=True) for e in (before[name], after[name]))
            by = with_error(moved, unit, sign=True, bare=True) if moved else "–"
            rows.append(BeforeAfter(f"{title}, {unit}", was, now, by, _direction(moved, least, words)))
    return rows


def _direction(change: Estimate | None, least: float, words: tuple[str, str]) -> str:
    if change is None or not math.isfinite(change.se):
        return ""
    more, less = words
    return {"better": more, "worse": less, "tie": "tie", "cannot_tell": "cannot tell"}[change.verdict(least)]


def least_reward(before: Estimate, after: Estimate) -> float:
    """Return the smallest change of the mean reward of a model's own texts that matters, as comparisons have it."""
    return DEVIATIONS * math.sqrt((before.deviation**2 + after.deviation**2) / 2)


def written_rows(texts: Mapping[str, Any]) -> list[BeforeAfter]:
    """Tabulate the length of both models' texts and how often they end; `texts` is `Distance.plain()`."""

    def named(name: str) -> Estimate | None:
        found = texts.get(name)
        return Estimate.from_plain(found) if isinstance(found, dict) and found.get("value") is not None else None

    rows = []
    before, after, risen = named("reward_before"), named("reward"), named("reward_change")
    if before and after and risen:
        was, now = (with_error(e, "", bare=True) for e in (before, after))
        change = with_error(risen, "", sign=True, bare=True)
        rows.append(
            BeforeAfter("Own texts, reward", was, now, change, _direction(risen, least_reward(before, after), BETTER))
        )
    before, after, longer = named("length_before"), named("length"), named("longer")
    if before and after and longer:
        was, now = (with_error(e, "tokens", bare=True) for e in (before, after))
        direction = _direction(longer, LENGTH * before.value, LONGER)
        change = with_error(longer, "tokens", sign=True, bare=True)
        rows.append(BeforeAfter("Own texts, tokens", was, now, change, direction))
    before, after = named("ended_before"), named("ended")
    if before and after:
        was, now = (with_error(e, "%", bare=True) for e in (before, after))
        change = with_unit(after.value - before.value, "%", sign=True, bare=True)
        rows.append(BeforeAfter("Own texts that end, %", was, now, change))
    return rows


def reward_model_rows(scores: Mapping[str, Any]) -> list[BeforeAfter]:
    """Tabulate a reward model's figures on held-out records; `scores` has those `before` and `after` training."""
    before, after = (scores.get(when, {}) for when in ("before", "after"))

    def row(title: str, was: Any, now: Any, unit: str) -> BeforeAfter | None:
        if not isinstance(now, dict) or now.get("value") is None:
            return None
        first = (
            with_error(Estimate.from_plain(was), unit, bare=True)
            if isinstance(was, dict) and was.get("value") is not None
            else "–"
        )
        return BeforeAfter(title, first, with_error(Estimate.from_plain(now), unit, bare=True), "")

    rows = [
        row(title, before.get(name), after.get(name), unit)
        for name, title, unit in (
            ("accuracy", "Better answer scores higher (a tie is half), %", "%"),
            ("accuracy_strict", "… a tie is wrong, %", "%"),
            ("ties", "Ties, %", "%"),
            ("margin", "Margin of scores", ""),
        )
    ]
    lengths = {"longer": "… where the better answer is longer, %", "shorter": "… where it is shorter, %",
               "same": "… where both are as long, %"}  # fmt: skip
    by_length = (before.get("by_length", {}), after.get("by_length", {}))
    rows[2:2] = [row(title, by_length[0].get(name), by_length[1].get(name), "%") for name, title in lengths.items()]
    return [r for r in rows if r is not None]
