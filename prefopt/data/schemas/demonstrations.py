"""Reads single good completions."""

from __future__ import annotations

from prefopt.data.fields import messages
from prefopt.data.make import demonstration
from prefopt.data.rows import Row
from prefopt.data.schemas.base import Made, Schema, has, is_turns
from prefopt.data.schemas.prompts import completion_of, instruction, is_open, prompt_of, split_answer, with_system


def prompt_completion(row: Row) -> list[Made]:
    """A prompt and its completion."""
    return [demonstration(prompt_of(row), completion_of(row.get("completion"), "completion"))]


def instruction_output(row: Row) -> list[Made]:
    """An instruction, its input if any, and the output."""
    return [demonstration(instruction(row), completion_of(row.get("output"), "output"))]


def dialogue(row: Row) -> list[Made]:
    """A dialogue whose last turn is the demonstration."""
    column = "messages" if has(row, "messages") else "conversations"
    return [demonstration(*split_answer(with_system(row, messages(row.get(column), column)), column))]


SCHEMAS = [
    Schema(
        name="prompt_completion", columns="prompt, completion", read=prompt_completion,
        matches=lambda row: has(row, "prompt", "completion"),
    ),
    Schema(
        name="dialogue", columns="messages (or conversations)", read=dialogue,
        matches=lambda row: any(is_turns(row.get(c)) and not is_open(row[c]) for c in ("messages", "conversations")),
    ),
    Schema(
        name="instruction_output", columns="instruction, input, output", read=instruction_output,
        matches=lambda row: has(row, "instruction", "output"),
    ),
]  # fmt: skip
