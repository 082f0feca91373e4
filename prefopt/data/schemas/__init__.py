"""Lists the schemas in the order in which they are tried, and recognises the one of a file.

A schema is a function from a row to records and a predicate that recognises its rows. To add one, write the function in
the module of its kind (`pairs`, `judgements`, `lists`, `trees`, `unpaired`, `demonstrations`, `prompts_alone`) and list
it in that module's `SCHEMAS`. Installed packages register theirs by entry points (group `prefopt.data.schemas`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import EntryPoint
from typing import Any

from prefopt.data.record import RowError
from prefopt.data.rows import Row
from prefopt.data.schemas import demonstrations, judgements, lists, pairs, prompts_alone, trees, unpaired
from prefopt.data.schemas.base import Schema
from prefopt.errors import UserError, nearest
from prefopt.plugin.outside import described, loaded, registered

SCHEMAS: dict[str, Schema] = {
    schema.name: schema
    for module in (trees, lists, pairs, judgements, unpaired, demonstrations, prompts_alone)  # from rich to poor
    for schema in module.SCHEMAS
}


ENTRY_POINT_GROUP = "prefopt.data.schemas"


def named(name: str) -> Schema:
    """The schema of this name, of prefopt or of an installed package; UserError with similar names if there is none."""
    if name in SCHEMAS:
        return SCHEMAS[name]
    outside = _outside()
    if name not in outside:
        known = [*SCHEMAS, *outside]
        raise UserError(f"unknown data.schema={name}{nearest(name, known)}; known are {', '.join(known)}")
    return _load_outside(outside[name])


@cache
def _outside() -> dict[str, EntryPoint]:
    return registered(ENTRY_POINT_GROUP, "schema", SCHEMAS)


def _load_outside(point: EntryPoint) -> Schema:
    where = described(point, "schema")
    schema = loaded(point, where)
    if not isinstance(schema, Schema):
        raise UserError(f"{where} must be a prefopt.data.schemas.base.Schema, got {type(schema).__name__}")
    if schema.name != point.name:
        raise UserError(f"{where} has another name in it, {schema.name!r}")
    return replace(schema, matches=_guarded(schema.matches, where), read=_guarded(schema.read, where))


def _guarded(function: Callable[[Row], Any], where: str) -> Callable[[Row], Any]:
    """A function of another package on a row: what it raises beside a RowError becomes an error that names it."""

    def call(row: Row) -> Any:
        try:
            return function(row)
        except (RowError, UserError, RecursionError, UnicodeError):
            raise
        except Exception as error:
            raise UserError(f"{where} failed on a row with the columns {', '.join(map(repr, row))}: "
                            f"{type(error).__name__}: {error}") from error  # fmt: skip

    return call


def recognise(rows: Sequence[Row], where: str) -> Schema:
    """The first schema of the menu that fits at least half as many of these rows as the best one.

    Schemas of installed packages come first. The menu goes from rich to poor, so that a label that is null in some rows
    does not make all of them demonstrations.
    Prompts alone are what rows have that fit no other schema.

    Raises:
        UserError: no row fits any schema, and the message lists the columns and how to map them; or the schema of an
            installed package cannot be loaded.
    """
    menu = {name: _load_outside(point) for name, point in _outside().items()} | SCHEMAS
    fits = Counter(schema.name for row in rows for schema in menu.values() if schema.matches(row))
    if not fits:
        columns = sorted({column for row in rows for column in row})
        judged = "name the verdict on its two answers with 'data.fields={winner: COLUMN}'; or "
        raise UserError(
            f"{where} has the columns {columns}, which fit no known schema; "
            f"{judged if any(map(judgements.has_answers, rows)) else ''}map them with "
            "'data.fields={prompt: COLUMN, chosen: COLUMN, rejected: COLUMN}' (or prompt, completion, label), "
            f"or choose data.schema=NAME among {', '.join(menu)}"
        )
    if len(fits) > 1:
        del fits[prompts_alone.SCHEMAS[0].name]
    most = max(fits.values())
    return next(schema for name, schema in menu.items() if 2 * fits[name] >= most)


def rename(row: Row, fields: dict[str, str]) -> Row:
    """The row with the file's columns under the schema's names; `a.b` reaches into a nested column."""
    if not fields:
        return row
    taken = {column.split(".")[0] for column in fields.values()}
    renamed = {column: value for column, value in row.items() if column not in taken}
    for name, column in fields.items():
        value: object = row
        for step in column.split("."):
            value = value.get(step) if isinstance(value, dict) else None
        renamed[name] = value
    return renamed
