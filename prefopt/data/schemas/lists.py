"""Schemas of several completions of one prompt, with scores or ranks."""

from __future__ import annotations

from prefopt.data.files import Row
from prefopt.data.make import ranked
from prefopt.data.messages import label, string
from prefopt.data.record import Record
from prefopt.data.schemas.base import Schema, has
from prefopt.data.schemas.prompts import user


def graded_solutions(row: Row) -> list[Record]:
    """A question, and one graded solution in a column per model; right is 1, wrong is 0."""
    graded = [value for value in row.values() if _graded(value)]
    return [
        ranked(
            user(string(row.get("question"), "question")),
            [string(answer["solution"], "solution") for answer in graded],
            [float(label(answer["is_correct"], "is_correct")) for answer in graded],
        )
    ]


def _graded(value: object) -> bool:
    return isinstance(value, dict) and has(value, "solution", "is_correct")


SCHEMAS = [
    Schema(
        name="graded_solutions", columns="question, MODEL: {solution, is_correct}, ...", read=graded_solutions,
        matches=lambda row: has(row, "question") and any(_graded(value) for value in row.values()),
    ),
]  # fmt: skip
