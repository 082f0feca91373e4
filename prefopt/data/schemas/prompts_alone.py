"""Reads prompts without completions, for samples of the policy."""

from __future__ import annotations

import re

from prefopt.data.fields import messages, string
from prefopt.data.make import prompt_alone
from prefopt.data.record import RowError
from prefopt.data.rows import Row
from prefopt.data.schemas.base import Made, Schema, has, is_turns
from prefopt.data.schemas.prompts import instruction, is_open, open_transcript, prompt_of, system_of, user, with_system

# A column of such a name is an answer, or a verdict on one: the row is no prompt alone, but of an unknown form.
ANSWERED = re.compile(r".*(chosen|rejected|completion|response|answer|output|label|winner|score|rating|reward).*", re.I)


def prompts(row: Row) -> list[Made]:
    """A prompt, or turns that end with the user's."""
    if has(row, "prompt"):
        if is_turns(row["prompt"]) and not is_open(row["prompt"]):
            raise RowError("not_a_prompt", "the turns of 'prompt' must end with the user's, which is to be answered")
        return [prompt_alone(open_transcript(prompt_of(row)))]
    for column in ("messages", "conversations"):
        if has(row, column):
            if not is_open(row[column]):
                raise RowError("not_a_prompt", f"the turns of {column!r} must end with the user's: this dialogue has "
                                               "its answer already")  # fmt: skip
            return [prompt_alone(with_system(row, messages(row[column], column)))]
    if has(row, "instruction"):
        return [prompt_alone(instruction(row))]
    return [prompt_alone((*system_of(row), *user(string(row.get("question"), "question"))))]


def _is_prompt(row: Row) -> bool:
    turns = any(is_open(row.get(column)) for column in ("messages", "conversations"))
    return (turns or any(has(row, name) for name in ("prompt", "instruction", "question"))) and not any(
        ANSWERED.fullmatch(name) and row.get(name) is not None for name in dict.keys(row)
    )


SCHEMAS = [
    Schema(
        name="prompts", columns="prompt (or messages, conversations, instruction, question), and no answer",
        read=prompts, matches=_is_prompt,
    ),
]  # fmt: skip
