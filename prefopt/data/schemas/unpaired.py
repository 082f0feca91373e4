"""Reads single completions with a label, desirable or undesirable."""

from __future__ import annotations

from typing import NamedTuple

from prefopt.data.fields import LABEL_COLUMNS, code_of, label, messages
from prefopt.data.make import unpaired
from prefopt.data.rows import Row
from prefopt.data.schemas.base import Made, Schema, has, is_turns
from prefopt.data.schemas.prompts import completion_of, instruction, prompt_of, split_answer, with_system


class Label(NamedTuple):
    """A label as it was understood."""

    code: str
    side: str


def prompt_label(row: Row) -> list[Made]:
    """A prompt, a completion, and its label."""
    return [unpaired(prompt_of(row), completion_of(row.get("completion"), "completion"), _label(row))]


def instruction_label(row: Row) -> list[Made]:
    """An instruction, its output, and its label."""
    return [unpaired(instruction(row), completion_of(row.get("output"), "output"), _label(row))]


def messages_label(row: Row) -> list[Made]:
    """A dialogue and the label of its last turn."""
    column = "messages" if has(row, "messages") else "conversations"
    prompt, answer = split_answer(with_system(row, messages(row.get(column), column)), column)
    return [unpaired(prompt, answer, _label(row))]


def _label(row: Row) -> bool:
    column = next((name for name in LABEL_COLUMNS if has(row, name)), "label")
    return label(row.get(column), column)


def _understood(row: Row) -> Label:
    column = next(name for name in LABEL_COLUMNS if has(row, name))
    return Label(f"{column}={code_of(row[column])}", "desirable" if _label(row) else "undesirable")


def _labelled(row: Row) -> bool:
    return any(has(row, name) for name in LABEL_COLUMNS)


SCHEMAS = [
    Schema(
        name="prompt_label", columns="prompt, completion, label", read=prompt_label, verdict=_understood,
        matches=lambda row: _labelled(row) and has(row, "prompt", "completion"),
    ),
    Schema(
        name="messages_label", columns="messages, label", read=messages_label, verdict=_understood,
        matches=lambda row: _labelled(row) and (is_turns(row.get("messages")) or is_turns(row.get("conversations"))),
    ),
    Schema(
        name="instruction_label", columns="instruction, input, output, label", read=instruction_label,
        verdict=_understood,
        matches=lambda row: _labelled(row) and has(row, "instruction", "output"),
    ),
]  # fmt: skip
