"""Reads two answers and the verdicts of one or several judges: first, second, or a tie."""

from __future__ import annotations

import dataclasses
import re

from prefopt.data.data_config import SIDES
from prefopt.data.fields import first, messages, number, string
from prefopt.data.make import pair
from prefopt.data.record import Record, RowError, Text
from prefopt.data.rows import Row
from prefopt.data.schemas.base import Made, Schema, has, is_turns
from prefopt.data.schemas.prompts import (
    completion_of,
    instruction,
    named_prompt,
    prompt_names,
    prompt_of,
    shared_turns,
    user,
)
from prefopt.data.schemas.verdicts import Verdict, has_verdict, verdict

STEMS = ("response", "answer", "output", "completion")
ENDS = (("a", "b"), ("1", "2"), ("0", "1"))
PROMPT_COLUMNS = ("prompt", "question", "instruction")


def judged_pair(row: Row) -> list[Made]:
    """Two answers to one prompt and the verdict; the scores are shares of the votes, so that a tie stays a tie."""
    columns = _answers(row)
    if columns is None:
        raise RowError(
            "missing_field", "the row has no two answers, such as response_a and response_b; map them with data.fields"
        )
    one, two = (completion_of(row.get(column), column) for column in columns)
    return [_decided(_prompt(row), one, two, judged_verdict(row))]


def arena(row: Row) -> list[Made]:
    """Two whole conversations with two models and the verdict."""
    sides = (messages(row.get(column), column) for column in ("conversation_a", "conversation_b"))
    return [_decided(*shared_turns(*sides), verdict(row))]


def ab_history(row: Row) -> list[Made]:
    """SHP: a post, two comments, `labels` 1 where A is preferred; the scores are the comments' votes."""
    one, two = (string(row.get(column), column) for column in ("human_ref_A", "human_ref_B"))
    found = ab_verdict(row)
    if has(row, "score_A", "score_B"):
        votes = number(row["score_A"], "score_A"), number(row["score_B"], "score_B")
        if (votes[0] > votes[1]) == (found.side == "first") and votes[0] != votes[1]:
            found = dataclasses.replace(found, first=votes[0], second=votes[1])
    return [_decided(user(string(row.get("history"), "history")), one, two, found)]


def ab_verdict(row: Row) -> Verdict:
    """1 where A is preferred, 0 where B is."""
    if row.get("labels") in SIDES:
        return verdict({"labels": row["labels"]})
    label = number(row.get("labels"), "labels")
    if label not in (0.0, 1.0):
        raise RowError("bad_label", f"'labels' must be 1 (A is preferred) or 0, not {label:g}")
    return Verdict(first=label, second=1 - label, code=f"labels={label:g}", column="labels")


def summaries(row: Row) -> list[Made]:
    """Two summaries of a post and the index of the better one."""
    found, info = row.get("summaries"), row.get("info")
    if not isinstance(found, list) or len(found) != 2 or not isinstance(info, dict):
        raise RowError("wrong_type", "'summaries' must be a list of two, 'info' an object with the post")
    one, two = (string(one.get("text") if isinstance(one, dict) else one, "summaries.text") for one in found)
    post = string(first(info, "post", "article"), "info.post")
    return [_decided(user(f"Summarize:\n\n{post}"), one, two, verdict(row))]


def scored_answers(row: Row) -> list[Made]:
    """Two answers, each with a score."""
    question = first(row, "question", "prompt")
    text = question.get("full_text") if isinstance(question, dict) else question
    one, two = (string(row.get(f"answer_{i}"), f"answer_{i}") for i in (0, 1))
    return [_decided(user(string(text, "question")), one, two, scored_verdict(row))]


def scored_verdict(row: Row) -> Verdict:
    """The higher score is better."""
    first, second = (number(row.get(f"score_{i}"), f"score_{i}") for i in (0, 1))
    sign = "<" if first < second else ">" if first > second else "="
    return Verdict(first=first, second=second, code=f"score_0{sign}score_1", column="score_0")


def judged_verdict(row: Row) -> Verdict:
    """The verdict on the two answers of a `judged_pair`."""
    return verdict(row, _answers(row) or ("", ""))


def _decided(prompt: Text, one: Text, two: Text, found: Verdict) -> Record:
    sides = (one, two) if found.first >= found.second else (two, one)
    scores = max(found.first, found.second), min(found.first, found.second)
    return pair(prompt, *sides, scores=scores, probability=scores[0] if found.shares else None)


def _prompt(row: Row) -> Text:
    if is_turns(dict.get(row, "context")):  # a text there is not the prompt, and not read
        return messages(row["context"], "context")
    if has(row, "instruction"):
        return instruction(row)
    column = next((name for name in ("prompt", "question") if has(row, name)), None)
    return named_prompt(row) if column is None else prompt_of(row, column)


def _answers(row: Row) -> tuple[str, str] | None:
    """The columns of two answers, however they are spelt: response_a, response_A, response 1, answer1.

    Raises:
        RowError: there are more than two.
    """
    named = {re.sub(r"[\s_-]+", "", name.lower()): name for name, value in row.items() if value is not None}
    for stem in STEMS:
        found = [named[stem + end] for end in "0123456789abcd" if stem + end in named]
        for one, two in ENDS:
            if stem + one in named and stem + two in named:
                if len(found) > 2:
                    raise RowError(
                        "too_many_answers",
                        f"the row has {len(found)} answers ({', '.join(found)}), and a verdict is on two; map these "
                        "with data.fields, such as {response_a: " + found[0] + ", response_b: " + found[1] + "}",
                    )
                return named[stem + one], named[stem + two]
    return None


def has_answers(row: Row) -> bool:
    """Whether the row has columns of two answers, or of more."""
    try:
        return _answers(row) is not None
    except RowError:
        return True


def _has_prompt(row: Row) -> bool:
    return bool(prompt_names(row)) or any(has(row, column) for column in PROMPT_COLUMNS)


SCHEMAS = [
    Schema(
        name="arena", columns="conversation_a, conversation_b, winner", read=arena, verdict=verdict,
        matches=lambda row: is_turns(row.get("conversation_a")) and is_turns(row.get("conversation_b")),
    ),
    Schema(
        name="ab_history", columns="history, human_ref_A, human_ref_B, labels", read=ab_history, verdict=ab_verdict,
        matches=lambda row: has(row, "history", "human_ref_A", "human_ref_B"),
    ),
    Schema(
        name="summaries", columns="info: {post}, summaries: [{text}], choice", read=summaries, verdict=verdict,
        matches=lambda row: has(row, "info", "summaries", "choice"),
    ),
    Schema(
        name="scored_answers", columns="question, answer_0, answer_1, score_0, score_1", read=scored_answers,
        verdict=scored_verdict,
        matches=lambda row: has(row, "answer_0", "answer_1", "score_0", "score_1"),
    ),
    Schema(
        name="judged_pair", columns="prompt, response_a, response_b, winner (or several judges)", read=judged_pair,
        verdict=judged_verdict,
        matches=lambda row: (
            has_answers(row) and has_verdict(row) and _has_prompt(row)
        ),
    ),
]  # fmt: skip
