"""Finds what a schema did not read of a row: counts it by name, and refuses what carries meaning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from prefopt.data.record import RowError
from prefopt.data.schemas.base import MEMBERS, PLACES

# Columns that change what a prompt, an answer or its share in the loss means.
MEANINGFUL = {
    "images", "image", "videos", "video", "audios", "audio", "tools", "functions", "chat_template_kwargs",
    "documents", "document", "passage", "context", "contexts", "input", "history", "system", "system_prompt",
    "initial_reason_steps", "ended", "weight", "weights", "sample_weight", "loss_weight", "example_weight",
}  # fmt: skip
SPEAKERS = {"role", "from"}
CALLS = ("tool_calls", "function_call")
MEANINGFUL_IN_TURNS = {"reasoning_content", "reasoning", "thinking", "images", "image", "audio", "tools", "prefix",
                       "weight", "loss_weight", "train"}  # fmt: skip
PROVENANCE = "provenance"  # where a row came from: of rows that prefopt wrote
NEUTRAL = {"weight": 1, "weights": 1, "sample_weight": 1, "loss_weight": 1, "example_weight": 1, "train": True,
           "prefix": False}  # fmt: skip


class Watched(dict[str, Any]):
    """A row, or an object in a row, that remembers which of its keys were read by name."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        super().__init__(row)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if name not in self.read:
            self.read.add(name)
            super().__setitem__(name, value := _watched(value))
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a column, noted as read."""
        if name in self:
            return self[name]
        self.read.add(name)
        return default


def _watched(value: Any) -> Any:
    if isinstance(value, list):
        return [_watched(one) for one in value]
    return Watched(value) if isinstance(value, dict) else value


def unread(row: Watched) -> list[str]:
    """The names of columns, of keys of turns (`turns.KEY`) and of objects (`COLUMN.KEY`), that were not read.

    Raises:
        RowError: one of them carries meaning.
    """
    left = sorted(_left(row, ""), key=lambda one: one[0].count("."))  # columns first
    for name, key in left:
        if name.startswith("turns.") and key in MEANINGFUL_IN_TURNS:
            raise _refused(f"the key {key!r} of a turn", key)
        if not name.startswith("turns.") and key in MEANINGFUL:
            raise _refused(f"the column {name!r}", key)
    return list(dict.fromkeys(name for name, _ in left))


def unread_of_members(row: Watched) -> tuple[Counter[str], dict[int, RowError]]:
    """The names that a gathered row's members hold unread, with their counts, and the members to refuse."""
    names: Counter[str] = Counter()
    refused = {}
    read = set().union(*(member.read for member in row[MEMBERS]))  # a rejected member was read in part
    for i, member in enumerate(row[MEMBERS]):
        member.read |= read
        try:
            names.update(unread(member))
        except RowError as error:
            refused[i] = RowError(error.reason, error.detail, rows=1, place=row[PLACES][i])
    return names, refused


def _left(value: Any, place: str, *, last: bool = True) -> Iterator[tuple[str, str]]:
    """(name, key) of what is left unread in a value; an object of which no key was read by name was read whole."""
    if isinstance(value, list):
        for i, one in enumerate(value):
            yield from _left(one, place, last=i == len(value) - 1)
    if not isinstance(value, Watched) or (place and not value.read):
        return
    if place and not SPEAKERS.isdisjoint(value):
        place = "turns."
    for key, held in value.items():
        if key in value.read:
            yield from _left(held, f"{place}{key}.")
        elif _holds(key, held):
            # The weight of a turn before the last, which is the prompt's anyway, means nothing.
            yield f"{place}{key}", "" if key in NEUTRAL and not last else key


def without(value: Any, names: list[str]) -> Any:
    """The row without the columns, and the keys of turns and objects in it, that `data.ignore` names."""
    if isinstance(value, list) and names:
        return [without(one, names) for one in value]
    if isinstance(value, dict) and names:
        return {
            name: held if name in CALLS else without(held, names) for name, held in value.items() if name not in names
        }
    return value


def _holds(name: str, value: Any) -> bool:
    """Whether a value says anything; an object of nulls, as Arrow fills absent ones, does not."""
    if name != PROVENANCE and isinstance(value, dict | list):
        return any(_holds(name, one) for one in (value.values() if isinstance(value, dict) else value))
    if value is None or name == PROVENANCE or (isinstance(value, str) and not value.strip()):
        return False
    return name not in NEUTRAL or str(value) not in (str(NEUTRAL[name]), f"{float(NEUTRAL[name])}")


def _refused(what: str, name: str) -> RowError:
    return RowError(
        "unread_input",
        f"{what} would change what is trained, and this schema does not read it; put it into the prompt, or give "
        f"data.ignore=[{name}] to train without it",
    )
