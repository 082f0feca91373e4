"""Defines `Record`: a prompt with K completions, the same for every method and schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

from prefopt.plugin import Data


class Message(TypedDict):
    """One chat turn; what is not required is there where the data has it, for templates that print it.

    `train` is False for a turn of the assistant in a completion that is context, and not trained.
    """

    role: str
    content: str
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[Any]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    train: NotRequired[bool]


Text = str | tuple[Message, ...]  # plain text, or chat turns


def is_trained(turn: Message) -> bool:
    """Whether a turn of a completion is trained, and not given."""
    return turn["role"] == "assistant" and turn.get("train", True)


def is_tie(scores: Sequence[float] | None, margin: float | None, probability: float | None) -> bool:
    """Whether neither side of a pair is preferred: by its scores, else its margin, else its probability."""
    if scores is not None:
        return scores[0] == scores[1]
    return margin == 0 if margin is not None else probability == 0.5


def reversed_sides(pair: Any) -> dict[str, Any]:
    """What changes where the sides of a pair (a `Record` or a `TokenRecord`) change places."""
    return {
        "completions": pair.completions[::-1],
        "scores": None if pair.scores is None else pair.scores[::-1],
        "margin": None if pair.margin is None else -pair.margin,
        "probability": None if pair.probability is None else 1 - pair.probability,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One example as text.

    Attributes:
        id: derived from the content, so that the order and the encoding of a file do not change it.
        kind: the shape of the record.
        prompt: plain text or chat turns (a system turn, if any, first).
        completions: PAIRS (chosen, rejected) · UNPAIRED and DEMONSTRATIONS one · LISTS K >= 2 · PROMPTS none. Of
            several turns those of the assistant are trained, the others are given.
        desirable: the label of an UNPAIRED record.
        scores: one per completion, higher is better (LISTS always; PAIRS where the data has them).
        ended: for each completion whether its turn ends with it; None: all do.
        arguments: what the row gives its chat template beside the turns, such as `tools`; of JSON values.
        weight: factor of this record's term in the loss, at least 0. Weights are not normalised: the loss of a step is
            the sum of weight times term over the number of records.
        margin: by how much the chosen side of PAIRS is better, in the data's own unit.
        probability: that the chosen side of PAIRS is the better one, such as its share of the annotators.
        source: `file:row`, rows counted from 0; for messages.
    """

    id: str
    kind: Data
    prompt: Text
    completions: tuple[Text, ...]
    desirable: bool | None = None
    scores: tuple[float, ...] | None = None
    weight: float = 1.0
    ended: tuple[bool, ...] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    margin: float | None = None
    probability: float | None = None
    source: str = ""

    @property
    def tied(self) -> bool:
        """Whether neither side of a pair is preferred."""
        return is_tie(self.scores, self.margin, self.probability)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A row or record that was dropped, and why."""

    source: str
    reason: str  # a short stable key, such as "empty_completion"
    detail: str  # one sentence that says what is wrong and what to do
    id: str = ""
    rows: int = 1  # rows that it accounts for; 0 for a part of a row that is used otherwise, more for a whole tree


class RowError(Exception):
    """A row that cannot become a record; the reader turns it into a `Rejection`."""

    def __init__(self, reason: str, detail: str, *, rows: int | None = None, place: str = "") -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail
        self.rows = rows  # of a gathered record that it accounts for, None for all that no record uses
        self.place = place  # of the row of a gathered record that it is about
        self.code = ""  # COLUMN=CODE, where it is a code without a known meaning
