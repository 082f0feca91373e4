"""What the doctor reports: figures with limits, said once, here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from prefopt.data.record import Rejection
from prefopt.errors import UserError, nearest

SHOWN_IDS = 20


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """A finding's name explained.

    Attributes:
        says: what the figure is.
        advice: what to do about a bad one.
        fails: limit that fails the check; None: it never fails by itself.
        notice: limit from which it is pointed out.
        low: whether a low figure is the bad one.
        share: whether the limits are shares of the records, and the figure a count of them.
    """

    says: str
    advice: str
    fails: float | None = None
    notice: float | None = None
    low: bool = False
    share: bool = False


MEANINGS: dict[str, Meaning] = {
    "kept": Meaning(
        says="records that can be trained on", share=True, low=True, fails=0.5, notice=0.95,
        advice="see the rejections: each has its reason",
    ),
    "size": Meaning(
        says="records, against 1,000 (fewer is noise) and 5,000 (a useful set)", low=True, notice=1000,
        advice="results from fewer than 1,000 records are mostly noise: use several seeds and a held-out set",
    ),
    "duplicate_rows": Meaning(
        says="records that repeat an earlier one exactly", share=True, fails=0.1, notice=0.01,
        advice="remove the repetitions: they count double",
    ),
    "near_duplicates": Meaning(
        says="records nearly the same as an earlier one (word triples, Jaccard 0.8 or more)", share=True, notice=0.02,
        advice="thin them out: they are not independent evidence",
    ),
    "repeated_prompts": Meaning(
        says="records whose prompt an earlier record has", advice="hold out by prompt, as data.eval_records does",
    ),
    "contradictory_prompts": Meaning(
        says="prompts with contradictory labels (unpaired: good and bad; pairs: one text both chosen and rejected)",
        share=True, fails=0.05, notice=0.0, advice="decide which label is right, or drop both rows",
    ),
    "leaked_prompts": Meaning(
        says="records whose prompt is among the held-out ones", share=True, fails=0.0,
        advice="prefopt train leaves them out; mend the split",
    ),
    "near_leaks": Meaning(
        says="records whose prompt is nearly a held-out one", share=True, fails=0.05, notice=0.0,
        advice="mend the split: held-out figures will be too good",
    ),
    "longer_chosen": Meaning(
        says="how often the longer side is the chosen one (0.5 is no bias)", notice=0.6,
        advice="a length-controlled loss (simpo, r_dpo, ld_dpo), or balance the pairs",
    ),
    "length_rule": Meaning(
        says="accuracy of the best rule that sees lengths only", notice=0.6,
        advice="compare every reported accuracy with this one",
    ),
    "word_rule": Meaning(
        says="held-out accuracy of a rule that sees which words occur, in no order", notice=0.75,
        advice="most of this preference can be learnt without reading: look at the words that give it away",
    ),
    "format_rule": Meaning(
        says="accuracy of the best rule that sees one mark of format only", notice=0.65,
        advice="one side was made another way: strip the mark, or the model will learn it first",
    ),
    "first_is_best": Meaning(
        says="how often the first completion of a list is a best one, above what chance gives", notice=0.2,
        advice="the order of the list gives the label away",
    ),
    "label_balance": Meaning(
        says="share of desirable completions", low=True, notice=0.2, advice="see the weights that KTO would need",
    ),
    "damaged_encoding": Meaning(
        says="records with damaged characters (replacement characters, UTF-8 read as Latin-1)", share=True, fails=0.05,
        notice=0.0, advice="read the source again with its right encoding",
    ),
    "control_characters": Meaning(
        says="records with control characters other than tab and newline", share=True, fails=0.05, notice=0.0,
        advice="strip them, unless the model is to write them",
    ),
    "markup": Meaning(
        says="records with HTML tags or entities left over", share=True, notice=0.05,
        advice="strip it, unless the model is to write it",
    ),
    "template_tokens": Meaning(
        says="records with a chat template's tokens in their text", share=True, fails=0.05, notice=0.0,
        advice="the text was formatted once already: extract the turns instead",
    ),
    "speaker_marks": Meaning(
        says="records with 'Human:' or 'Assistant:' inside a turn", share=True, notice=0.01,
        advice="a turn was not split off, or the model played both speakers",
    ),
    "too_long": Meaning(
        says="records over max_length", share=True, notice=0.05,
        advice="raise data.max_length, or choose data.truncation",
    ),
    "truncated_prompts": Meaning(
        says="records whose prompt was shortened", share=True, notice=0.1, advice="raise data.max_length",
    ),
    "identical_if_cut": Meaning(
        says="pairs that a cut at max_length would make identical", share=True, notice=0.01,
        advice="prefopt drops them as too long; a trainer that cuts would learn nothing from them",
    ),
    "base_prefers_chosen": Meaning(
        says="share of a sample where the model already gives the chosen side more log-prob",
        advice="far below 0.5: the chosen texts are not its own; consider SFT on them first", low=True, notice=0.35,
    ),
    "end_of_turn": Meaning(
        says="median probability that the model ends the turn where the chosen answer ends", low=True, notice=0.05,
        advice="the model does not follow this chat template: train SFT first, or choose another template",
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A figure, its limit, and whether it holds."""

    name: str
    figure: float
    total: int = 0  # the count that a share is of
    ids: tuple[str, ...] = ()
    note: str = ""
    limit: float | None = None  # set by the user; a count or a share as MEANINGS has it

    @property
    def meaning(self) -> Meaning:
        """What the figure is."""
        return MEANINGS[self.name]

    @property
    def threshold(self) -> float | None:
        """The figure from which the check fails; a count where the figure is one."""
        limit = self.meaning.fails
        if self.limit is not None:
            return self.limit
        if limit is None or not self.meaning.share:
            return limit
        return float(int(limit * self.total))

    @property
    def ok(self) -> bool:
        """Whether the figure is on the right side of its threshold."""
        return self.threshold is None or not self._beyond(self.threshold)

    @property
    def noticed(self) -> bool:
        """Whether the figure deserves a look."""
        notice = self.meaning.notice
        return notice is not None and self._beyond(notice * self.total if self.meaning.share else notice)

    def _beyond(self, limit: float) -> bool:
        return self.figure < limit if self.meaning.low else self.figure > limit

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "figure": self.figure,
            "threshold": self.threshold,
            "ok": self.ok,
            "noticed": self.noticed,
            **({"share": round(self.figure / self.total, 6)} if self.meaning.share and self.total else {}),
            "ids": list(self.ids[:SHOWN_IDS]),
            "note": self.note,
        }


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of a quantity in bins, one series per side."""

    title: str
    unit: str
    edges: list[float]
    series: dict[str, list[int]]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the doctor found in one set."""

    name: str
    schema: str
    kind: str
    rows: int
    kept: int
    rejections: list[Rejection]
    findings: dict[str, Finding]
    histograms: list[Histogram] = field(default_factory=list)
    costs: list[dict[str, float]] = field(default_factory=list)  # what other values of max_length would drop

    @property
    def ok(self) -> bool:
        """Whether every threshold holds."""
        return all(finding.ok for finding in self.findings.values())

    def reasons(self) -> dict[str, dict[str, Any]]:
        """Reason -> how many rows, and which (their ids, or `file:row` where there is no record)."""
        counts = Counter(rejection.reason for rejection in self.rejections)
        return {
            reason: {
                "count": count,
                "ids": [r.id or r.source for r in self.rejections if r.reason == reason],
                "sources": [r.source for r in self.rejections if r.reason == reason],
                "example": next(r.detail for r in self.rejections if r.reason == reason),
            }
            for reason, count in counts.most_common()
        }

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "name": self.name,
            "schema": self.schema,
            "kind": self.kind,
            "rows": self.rows,
            "kept": self.kept,
            "rejected": self.reasons(),
            "findings": {name: finding.plain() for name, finding in self.findings.items()},
            "max_length_costs": self.costs,
            "ok": self.ok,
        }


def thresholds(settings: Sequence[str]) -> dict[str, float]:
    """`NAME=VALUE` settings as numbers; a share such as `2%` is not one: counts are counts.

    Raises:
        UserError: an unknown finding, or a value that is no number.
    """
    found = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in MEANINGS:
            raise UserError(f"no finding {name!r}{nearest(name, list(MEANINGS))}; there are {', '.join(MEANINGS)}")
        try:
            found[name] = float(value)
        except ValueError:
            raise UserError(f"--threshold {setting}: give NAME=NUMBER") from None
    return found
