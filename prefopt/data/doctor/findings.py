"""Defines what the doctor reports: the meaning of each figure, its limits and advice."""

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
    """The meaning of a finding.

    Attributes:
        says: what the figure is.
        advice: what to do about a bad figure.
        fails: limit beyond which the check fails; None for never.
        notice: limit beyond which the figure is marked.
        low: whether a low figure is bad.
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
        advice="read the reasons of the rejections",
    ),
    "size": Meaning(
        says="records; fewer than 1,000 is noise, 5,000 a useful set", low=True, notice=1000,
        advice="results from fewer than 1,000 records are mostly noise: use several seeds and a held-out set",
    ),
    "duplicate_rows": Meaning(
        says="records that repeat an earlier one exactly", share=True, fails=0.1, notice=0.01,
        advice="remove them: each counts twice",
    ),
    "repeated_answers": Meaning(
        says="prompts with the most frequent answer, if 3 or more have it", share=True, notice=0.02,
        advice="look at that answer: a refusal or an error message that fits everywhere is learnt first",
    ),
    "near_duplicates": Meaning(
        says="records nearly the same as an earlier one (word triples, Jaccard 0.8 or more)", share=True, notice=0.02,
        advice="remove most of them: they are not independent evidence",
    ),
    "repeated_prompts": Meaning(
        says="records whose prompt an earlier record has", advice="hold out by prompt, as data.eval_records does",
    ),
    "contradictory_prompts": Meaning(
        says="prompts with opposite verdicts on the same texts, directly or in a circle (labels: a text good and bad)",
        share=True, fails=0.05, notice=0.0,
        advice="decide which verdict is right, drop both rows, or make one pair of them by data.annotators=merge",
    ),
    "chosen_scored_lower": Meaning(
        says="pairs whose rejected side has the higher score", share=True, fails=0.5, notice=0.0,
        advice="one of the two is wrong: find out whether low scores are good, or drop these pairs",
    ),
    "ties": Meaning(
        says="pairs of which neither side is preferred", share=True,
        advice="data.ties decides about them: dpo_rk and the like learn from ties",
    ),
    "with_weight": Meaning(
        says="records whose weight is not 1", advice="each multiplies its record's term in the loss",
    ),
    "with_margin": Meaning(
        says="pairs with a margin", advice="losses that read it ask for that much more of the chosen side",
    ),
    "with_probability": Meaning(
        says="pairs with a probability, or a share of votes, of the chosen side",
        advice="losses that read it learn the share instead of the side",
    ),
    "margin_against_label": Meaning(
        says="pairs with a margin below 0 or a probability below 1/2", share=True, fails=0.5, notice=0.0,
        advice="the label or the number is wrong: find out whether a low number is good, or drop these pairs",
    ),
    "with_images": Meaning(
        says="records with images in the prompt", advice="each image takes tokens of data.max_length",
    ),
    "duplicated_images": Meaning(
        says="records with an image that an earlier record with another prompt has, in whatever file",
        share=True, notice=0.1,
        advice="records about one image are not independent evidence: hold out by image, and look for contradictions",
    ),
    "winner_side": Meaning(
        says="how often the side that wins more often wins (0.5 is no bias)", notice=0.6,
        advice="the place gives the verdict away: check what the codes mean, and whether the judge saw both orders",
    ),
    "leaked_prompts": Meaning(
        says="records whose prompt is among the held-out ones", share=True, fails=0.0,
        advice="prefopt train leaves them out; fix the split",
    ),
    "near_leaks": Meaning(
        says="records whose prompt is nearly a held-out one", share=True, fails=0.05, notice=0.0,
        advice="fix the split: held-out figures will be too good",
    ),
    "longer_chosen": Meaning(
        says="how often the longer side is the chosen one (0.5 is no bias)", notice=0.6,
        advice="use a length-controlled loss (simpo, r_dpo, ld_dpo), or balance the pairs",
    ),
    "length_rule": Meaning(
        says="accuracy of the best rule on lengths alone", notice=0.6,
        advice="compare every reported accuracy with this one",
    ),
    "word_rule": Meaning(
        says="held-out accuracy of a rule on which words occur, in any order", notice=0.75,
        advice="the preference can be learnt without reading: look at the words that predict it",
    ),
    "format_rule": Meaning(
        says="accuracy of the best rule on one feature of the format", notice=0.65,
        advice="one side was made in another way: remove the feature, or the model learns it first",
    ),
    "first_is_best": Meaning(
        says="how much more often than by chance the first completion of a list is the best", notice=0.2,
        advice="the order of the list gives the label away",
    ),
    "label_balance": Meaning(
        says="share of desirable completions", low=True, notice=0.2, advice="set the weights that the note gives",
    ),
    "damaged_encoding": Meaning(
        says="records with damaged characters (replacement characters, UTF-8 read as Latin-1)", share=True, fails=0.05,
        notice=0.0, advice="read the source again with the right encoding",
    ),
    "control_characters": Meaning(
        says="records with control characters other than tab and newline", share=True, fails=0.05, notice=0.0,
        advice="remove them, unless the model should write them",
    ),
    "markup": Meaning(
        says="records with left-over HTML tags or entities", share=True, notice=0.05,
        advice="remove it, unless the model should write it",
    ),
    "template_tokens": Meaning(
        says="records with a chat template's tokens in their text", share=True, fails=0.05, notice=0.0,
        advice="the text was already formatted: extract the turns instead",
    ),
    "placeholders": Meaning(
        says="records with <noinput>, [deleted], null or the like in place of a text", share=True, notice=0.0,
        advice="remove the placeholder, or the record",
    ),
    "speaker_marks": Meaning(
        says="records with 'Human:' or 'Assistant:' inside a turn", share=True, notice=0.01,
        advice="a turn was not split off, or a model wrote both speakers",
    ),
    "too_long": Meaning(
        says="records over max_length", share=True, notice=0.05,
        advice="raise data.max_length, or choose data.truncation",
    ),
    "truncated_prompts": Meaning(
        says="records whose prompt was shortened", share=True, notice=0.1, advice="raise data.max_length",
    ),
    "identical_if_cut": Meaning(
        says="pairs that truncation at max_length would make identical", share=True, notice=0.01,
        advice="prefopt drops them as too long; a trainer that truncates learns nothing from them",
    ),
    "base_prefers_chosen": Meaning(
        says="share of a sample in which the model gives the chosen side the higher log-prob", low=True, notice=0.35,
        advice="far below 0.5: the model would not write the chosen texts; consider SFT on them first",
    ),
    "end_of_turn": Meaning(
        says="median probability that the model ends the turn where the chosen answer ends", low=True, notice=0.05,
        advice="the model does not follow this chat template: train SFT first, or choose another template",
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A figure and its limit."""

    name: str
    figure: float
    total: int = 0  # the count of which the figure is a share
    ids: tuple[str, ...] = ()
    note: str = ""
    limit: float | None = None  # set by the user; a count where the figure is one

    @property
    def meaning(self) -> Meaning:
        """The meaning of the figure."""
        return MEANINGS[self.name]

    @property
    def threshold(self) -> float | None:
        """The figure beyond which the check fails; a count where the figure is one."""
        limit = self.meaning.fails
        if self.limit is not None:
            return self.limit
        if limit is None or not self.meaning.share:
            return limit
        return float(int(limit * self.total))

    @property
    def ok(self) -> bool:
        """Whether the figure keeps to its threshold."""
        return self.threshold is None or not self._beyond(self.threshold)

    @property
    def noticed(self) -> bool:
        """Whether the figure is beyond its limit for attention."""
        notice = self.meaning.notice
        return notice is not None and self._beyond(notice * self.total if self.meaning.share else notice)

    def _beyond(self, limit: float) -> bool:
        return self.figure < limit if self.meaning.low else self.figure > limit

    def plain(self) -> dict[str, Any]:
        """JSON values."""
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
    """The findings of one data set."""

    name: str
    schema: str
    kind: str
    rows: int
    kept: int
    rejections: list[Rejection]
    findings: dict[str, Finding]
    histograms: list[Histogram] = field(default_factory=list)
    costs: list[dict[str, float]] = field(
        default_factory=list
    )  # share of records dropped at other values of max_length
    account: list[str] = field(default_factory=list)  # see `prefopt.data.account`

    @property
    def ok(self) -> bool:
        """Whether no threshold is exceeded."""
        return all(finding.ok for finding in self.findings.values())

    def reasons(self) -> dict[str, dict[str, Any]]:
        """Reason -> the number of rows, and their ids (`file:row` of those without one)."""
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
        """JSON values."""
        return {
            "name": self.name,
            "schema": self.schema,
            "kind": self.kind,
            "rows": self.rows,
            "kept": self.kept,
            "account": self.account,
            "rejected": self.reasons(),
            "findings": {name: finding.plain() for name, finding in self.findings.items()},
            "max_length_costs": self.costs,
            "ok": self.ok,
        }


def thresholds(settings: Sequence[str]) -> dict[str, float]:
    """Parse `NAME=NUMBER` settings.

    Raises:
        UserError: an unknown finding, or a value that is not a number.
    """
    found = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in MEANINGS:
            raise UserError(f"no finding {name!r}{nearest(name, list(MEANINGS))}; known are {', '.join(MEANINGS)}")
        try:
            found[name] = float(value)
        except ValueError:
            raise UserError(f"--threshold {setting}: give NAME=NUMBER") from None
    return found
