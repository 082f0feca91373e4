"""Parses the cells of a row in which a structure was written as text, as CSV files have them."""

from __future__ import annotations

import ast
import json
from typing import Any

from prefopt.data.fields import ROLES
from prefopt.data.rows import Row

# Columns that hold lists or objects: any JSON in them is a structure.
STRUCTURED = {
    "messages", "conversations", "conversation", "conversation_a", "conversation_b", "chosen_messages",
    "rejected_messages", "history", "completions", "responses", "scores", "answers", "summaries", "info", "replies",
    "tools", "functions", "chat_template_kwargs", "images", "votes", "annotations",
}  # fmt: skip
SPEAKERS, SPOKEN = {"role", "from"}, {"content", "value", "text", "tool_calls"}


def parsed(row: Row) -> Row:
    """The row with structures in place of their texts; a text that only looks like one is unchanged."""
    changed = {name: value for name, text in row.items() if (value := _structure(name, text)) is not text}
    return {**row, **changed} if changed else row


def _structure(name: str, text: Any) -> Any:
    """The structure that a cell holds: any in a column of structures, a list of chat turns or one turn elsewhere."""
    if not isinstance(text, str) or text[:1] not in ("[", "{", " ", "\n") or (start := text.lstrip()[:1]) not in "[{":
        return text
    if not start or (name not in STRUCTURED and not _names_speaker(text)):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text.strip()) if len(text) < 2**20 else text  # as pandas writes lists
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return text
    graded = isinstance(value, dict) and not {"solution", "full_text"}.isdisjoint(value)
    return value if name in STRUCTURED or graded or is_spoken(value) else text


def is_spoken(value: Any) -> bool:
    """Whether a value is a chat turn or a list of them."""
    turns = value if isinstance(value, list) else [value]
    return bool(turns) and all(
        isinstance(turn, dict)
        and any(str(turn.get(key)).lower() in ROLES for key in SPEAKERS)
        and not SPOKEN.isdisjoint(turn)
        for turn in turns
    )


def _names_speaker(text: str) -> bool:
    return any(
        f"{quote}{key}{quote}" in text[:10_000] for key in (*SPEAKERS, "solution", "full_text") for quote in "\"'"
    )
