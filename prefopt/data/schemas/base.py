"""What a schema is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prefopt.data.record import Record, RowError
from prefopt.data.rows import Row

Made = Record | RowError  # of a row that holds several records, some may fail


@dataclass(frozen=True, kw_only=True)
class Schema:
    """One way in which data sets write down preferences.

    Attributes:
        name: the value of `data.schema`.
        columns: what a row looks like, for the menu.
        matches: whether a row looks so; called on a few rows, by columns and types, never by content.
        read: the records of a row, mostly one; raises RowError where there is none, lists it where there are others.
        gather: joins rows that only together make a record (`None`: each row stands alone).
    """

    name: str
    columns: str
    matches: Callable[[Row], bool]
    read: Callable[[Row], list[Made]]
    gather: Callable[[Iterator[tuple[str, Row]]], Iterator[tuple[str, Row]]] | None = None


def has(row: Row, *columns: str) -> bool:
    """Whether these columns are there and not null."""
    return all(row.get(column) is not None for column in columns)


def is_turns(value: object) -> bool:
    """Whether a value looks like a list of chat turns."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)
