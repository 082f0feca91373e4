"""Finds what a schema did not read of a row: counts it by name, and refuses what carries meaning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prefopt.data.record import RowError
from prefopt.data.rows import Row
from prefopt.data.schemas.base import is_turns

# Columns that change what a prompt, an answer or its share in the loss means.
MEANINGFUL = {
    "images", "image", "videos", "video", "audios", "audio", "tools", "functions", "chat_template_kwargs",
    "documents", "document", "passage", "context", "contexts", "input", "history", "system", "system_prompt",
    "initial_reason_steps", "weight", "weights", "sample_weight", "loss_weight",
}  # fmt: skip
TURN_KEYS = {"role", "from", "user", "content", "value", "text", "body", "tool_calls", "function_call", "name"}
MEANINGFUL_IN_TURNS = {"reasoning_content", "reasoning", "thinking", "images", "image", "audio", "tools", "prefix",
                       "weight", "loss_weight", "train"}  # fmt: skip
NEUTRAL = {"weight": 1, "weights": 1, "sample_weight": 1, "loss_weight": 1, "train": True, "prefix": False}


class WatchedRow(dict[str, Any]):
    """A row that remembers which columns were read by name."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        super().__init__(row)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a column, noted as read."""
        self.read.add(name)
        return super().get(name, default)


def unread(row: WatchedRow) -> list[str]:
    """The names of columns and of keys of turns, as `turns.KEY`, that hold something and were not read.

    Raises:
        RowError: one of them carries meaning.
    """
    names = [name for name, value in row.items() if name not in row.read and _holds(name, value)]
    for name in names:
        if name in MEANINGFUL:
            raise _refused(f"the column {name!r}", name)
    keys = set()
    for name, value in row.items():
        if name in row.read:
            keys |= set(_turn_keys(value))
    for key in sorted(keys & MEANINGFUL_IN_TURNS):
        raise _refused(f"the key {key!r} of a turn", key)
    return [*names, *(f"turns.{key.strip()}" for key in sorted(keys))]


def without(row: Row, names: list[str]) -> Row:
    """The row without the columns, and the keys of turns, that `data.ignore` names."""
    if not names:
        return row
    return {name: _without(value, names) for name, value in row.items() if name not in names}


def _without(value: Any, names: list[str]) -> Any:
    if is_turns(value):
        return [{k: v for k, v in turn.items() if k not in names} if isinstance(turn, dict) else turn for turn in value]
    return value


def _turn_keys(value: Any) -> Iterator[str]:
    """The keys not read; that of a weight with a space in turns before the last, which are the prompt's anyway."""
    turns = value if is_turns(value) else [value] if isinstance(value, dict) else []
    for i, turn in enumerate(turns):
        if isinstance(turn, dict) and not {"role", "from"}.isdisjoint(turn):
            for key, held in turn.items():
                if key not in TURN_KEYS and _holds(key, held):
                    yield f"{key} " if key in NEUTRAL and i < len(turns) - 1 else key


def _holds(name: str, value: Any) -> bool:
    if value is None or value in ("", [], {}) or (isinstance(value, str) and not value.strip()):
        return False
    return name not in NEUTRAL or str(value) not in (str(NEUTRAL[name]), f"{float(NEUTRAL[name])}")


def _refused(what: str, name: str) -> RowError:
    return RowError(
        "unread_input",
        f"{what} would change what is trained, and this schema does not read it; put it into the prompt, or give "
        f"data.ignore=[{name}] to train without it",
    )
