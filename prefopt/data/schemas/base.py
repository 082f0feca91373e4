"""Defines `Schema`: how a data set writes down preferences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from prefopt.data.fields import blank, number
from prefopt.data.record import Record, RowError
from prefopt.data.rows import Row

MEMBERS, PLACES = "rows of the record", "places of the rows"  # of a row that `gather` made
ENDED_DEFAULT = "whether an answer ends its turn if it does not say so"  # `data.ended`, in every row that is read
Made = Record | RowError  # a row may hold several records, of which some may fail


@dataclass(frozen=True, kw_only=True)
class Schema:
    """One way in which data sets write down preferences: how to recognise its rows and read them.

    Attributes:
        name: the value of `data.schema`.
        columns: what a row looks like, for the menu.
        matches: whether a row has this form, by its columns and their types; called on the first rows.
        read: the records of a row, mostly one; a RowError is raised, or listed beside other records.
        verdict: the verdict of a row on two answers, to count what was understood; None without verdicts.
        gather: joins the rows that make one record together; None if each row is a record.
    """

    name: str
    columns: str
    matches: Callable[[Row], bool]
    read: Callable[[Row], list[Made]]
    verdict: Callable[[Row], Any] | None = None
    gather: Callable[[Iterator[tuple[str, Row]]], Iterator[tuple[str, Row]]] | None = None


def has(row: Row, *columns: str) -> bool:
    """Whether the row has all these columns, and none is null; to look is not to read, see `prefopt.data.unread`."""
    return all(dict.get(row, column) is not None for column in columns)


# Facts of a row beside its texts, under the names that data sets use; `data.fields` maps others to the first.
FACTS = {
    "weight": ("weight", "sample_weight", "loss_weight", "example_weight"),
    "margin": ("margin", "preference_margin", "reward_margin", "score_margin"),
    "probability": ("probability", "preference_probability", "chosen_probability", "chosen_prob", "prob_chosen"),
}


def fact(row: Row, name: str) -> float | None:
    """The number of a fact of `FACTS`, under the first of its names that the row has; None where it has none.

    An empty cell of a CSV file is none.
    """
    column = next((c for c in FACTS[name] if has(row, c) and not (isinstance(row[c], str) and blank(row[c]))), None)
    return None if column is None else number(row[column], column)


def is_turns(value: object) -> bool:
    """Whether a value looks like a list of chat turns."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def joined(rows: Iterable[tuple[str, Row]], key: Callable[[Row], Any]) -> Iterator[tuple[str, Row]]:
    """Join successive rows with the same key into one row, of MEMBERS and PLACES."""
    for _, group in groupby(rows, key=lambda found: key(found[1])):
        together = list(group)
        yield together[0][0], {MEMBERS: [row for _, row in together], PLACES: [place for place, _ in together]}
