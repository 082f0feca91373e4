"""Defines `Record`: a prompt with K completions, the same for every method and schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

from prefopt.plugin import Data


class Message(TypedDict):
    """One chat turn; `tool_calls` and `name` are there where the data has them, for templates that print them."""

    role: str
    content: str
    tool_calls: NotRequired[list[Any]]
    name: NotRequired[str]


Text = str | tuple[Message, ...]  # plain text, or chat turns


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One example as text.

    Attributes:
        id: derived from the content, so that the order and the encoding of a file do not change it.
        kind: the shape of the record.
        prompt: plain text or chat turns (a system turn, if any, first).
        completions: PAIRS (chosen, rejected) · UNPAIRED and DEMONSTRATIONS one · LISTS K >= 2 · PROMPTS none.
        desirable: the label of an UNPAIRED record.
        scores: one per completion, higher is better (LISTS always; PAIRS where the data has them).
        weight: factor of this record's loss.
        arguments: what the row gives its chat template beside the turns, such as `tools`; of JSON values.
        source: `file:row`, rows counted from 0; for messages.
    """

    id: str
    kind: Data
    prompt: Text
    completions: tuple[Text, ...]
    desirable: bool | None = None
    scores: tuple[float, ...] | None = None
    weight: float = 1.0
    arguments: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


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
