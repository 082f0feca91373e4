"""Reads two answers and the verdicts of one or several judges: first, second, or a tie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prefopt.data.fields import first, messages, number, plain, shown, string
from prefopt.data.make import pair
from prefopt.data.record import Record, RowError, Text
from prefopt.data.rows import Row
from prefopt.data.schemas.base import Made, Schema, has, is_turns
from prefopt.data.schemas.prompts import completion_of, instruction, prompt_of, shared_turns, user

ANSWERS = [
    ("response_a", "response_b"), ("answer_a", "answer_b"), ("output_a", "output_b"), ("completion_a", "completion_b"),
    ("response_1", "response_2"), ("response1", "response2"), ("answer_1", "answer_2"), ("output_1", "output_2"),
    ("response_0", "response_1"), ("answer_0", "answer_1"),
]  # fmt: skip
PROMPT_COLUMNS = ("prompt", "question", "instruction", "context")
INDEX_COLUMNS = ("better_response_id", "choice")  # 0 is the first answer, 1 the second
STRENGTH_COLUMNS = ("preference_strength", "overall_preference")  # below 0: the first is better, above: the second
VERDICT_COLUMNS = ("winner", "preference", "verdict", "label", "labels", "votes", "annotations", "preferred")
VERDICTS = {
    "0": 0, "tie": 0, "both": 0, "equal": 0, "draw": 0, "c": 0, "same": 0, "neither": 0, "1.5": 0, "tie (bothbad)": 0,
    "1": 1, "a": 1, "first": 1, "model_a": 1, "response_a": 1, "response_1": 1, "answer_a": 1, "left": 1,
    "2": 2, "b": 2, "second": 2, "model_b": 2, "response_b": 2, "response_2": 2, "answer_b": 2, "right": 2,
}  # fmt: skip


def judged_pair(row: Row) -> list[Made]:
    """Two answers to one prompt and the verdict; the scores are shares of the votes, so that a tie stays a tie.

    Verdicts in numbers: 0 is a tie, 1 the first answer, 2 the second (1.5 is a tie, too); in `better_response_id` and
    `choice` 0 is the first, 1 the second.
    """
    columns = _answers(row)
    if columns is None:
        raise RowError(
            "missing_field", "the row has no two answers, such as response_a and response_b; map them with data.fields"
        )
    one, two = (completion_of(row.get(column), column) for column in columns)
    return [_decided(_prompt(row), one, two, *_scores(row))]


def arena(row: Row) -> list[Made]:
    """Two whole conversations with two models and the verdict."""
    sides = (messages(row.get(column), column) for column in ("conversation_a", "conversation_b"))
    return [_decided(*shared_turns(*sides), *_scores(row))]


def ab_history(row: Row) -> list[Made]:
    """SHP: a post, two comments, `labels` 1 where A is preferred; the scores are the comments' votes."""
    label = number(row.get("labels"), "labels")
    if label not in (0.0, 1.0):
        raise RowError("bad_label", f"'labels' must be 1 (A is preferred) or 0, not {label:g}")
    one, two = (string(row.get(column), column) for column in ("human_ref_A", "human_ref_B"))
    scores = (label, 1 - label)
    if has(row, "score_A", "score_B"):
        votes = number(row["score_A"], "score_A"), number(row["score_B"], "score_B")
        if (votes[0] > votes[1]) == (label == 1) and votes[0] != votes[1]:
            scores = votes
    return [_decided(user(string(row.get("history"), "history")), one, two, *scores)]


def summaries(row: Row) -> list[Made]:
    """Two summaries of a post and the index of the better one."""
    found, info = row.get("summaries"), row.get("info")
    if not isinstance(found, list) or len(found) != 2 or not isinstance(info, dict):
        raise RowError("wrong_type", "'summaries' must be a list of two, 'info' an object with the post")
    one, two = (string(one.get("text") if isinstance(one, dict) else one, "summaries.text") for one in found)
    post = string(first(info, "post", "article"), "info.post")
    return [_decided(user(f"Summarize:\n\n{post}"), one, two, *_scores(row))]


def scored_answers(row: Row) -> list[Made]:
    """Two answers, each with a score."""
    question = row.get("question", row.get("prompt"))
    text = question.get("full_text") if isinstance(question, dict) else question
    scores = (number(row.get(f"score_{i}"), f"score_{i}") for i in (0, 1))
    one, two = (string(row.get(f"answer_{i}"), f"answer_{i}") for i in (0, 1))
    return [_decided(user(string(text, "question")), one, two, *scores)]


def _decided(prompt: Text, one: Text, two: Text, score_one: float, score_two: float) -> Record:
    if score_one >= score_two:
        return pair(prompt, one, two, scores=(score_one, score_two))
    return pair(prompt, two, one, scores=(score_two, score_one))


def _prompt(row: Row) -> Text:
    if is_turns(row.get("context")):
        return messages(row["context"], "context")
    if has(row, "instruction"):
        return instruction(row)
    return prompt_of(row, "prompt" if has(row, "prompt") else "question")


def _answers(row: Row) -> tuple[str, str] | None:
    return next((columns for columns in ANSWERS if has(row, *columns)), None)


def _scores(row: Row) -> tuple[float, float]:
    """Shares of the votes for the first and the second answer; a tie gives half to each."""
    for column in STRENGTH_COLUMNS:
        if has(row, column):
            strength = number(row[column], column)
            return max(-strength, 0.0), max(strength, 0.0)
    for column in INDEX_COLUMNS:
        if has(row, column):
            index = number(row[column], column)
            if index not in (0.0, 1.0):
                raise RowError("bad_label", f"{column!r} must be 0 or 1, not {index:g}")
            return 1 - index, index
    votes = [_verdict(value, name) for name, value in _votes(row)]
    if not votes:
        raise RowError("missing_field", f"the row has no verdict in any of {', '.join(VERDICT_COLUMNS)}")
    one, two = (sum(vote == side for vote in votes) + votes.count(0) / 2 for side in (1, 2))
    return one / len(votes), two / len(votes)


def _votes(row: Row) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if value is None or not (name in VERDICT_COLUMNS or _is_annotator(name)):
            continue
        for vote in value if isinstance(value, list) else [value]:
            yield name, vote
    flags = [row.get(f"winner_{side}") for side in ("tie", "model_a", "model_b")]
    if any(flag is not None for flag in flags):
        yield "winner_*", next((side for side, flag in enumerate(flags) if flag in (1, True)), None)


def _is_annotator(name: str) -> bool:
    return name.startswith(("annotator", "judge_")) and name[-1].isdigit()


def _verdict(value: Any, name: str) -> int:
    key = plain(value) if isinstance(value, int | float) and not isinstance(value, bool) else _word(value)
    if key not in VERDICTS:
        raise RowError("bad_label", f"{name!r} must be first, second or tie (1, 2, 0; A, B, tie), not {shown(value)}")
    return VERDICTS[key]


def _word(value: Any) -> str:
    return value.strip().lower() if isinstance(value, str) else ""


def _judged(row: Row) -> bool:
    flagged = has(row, "winner_tie") or any(_is_annotator(name) for name in row)
    return flagged or any(has(row, name) for name in (*VERDICT_COLUMNS, *INDEX_COLUMNS, *STRENGTH_COLUMNS))


SCHEMAS = [
    Schema(
        name="arena", columns="conversation_a, conversation_b, winner", read=arena,
        matches=lambda row: is_turns(row.get("conversation_a")) and is_turns(row.get("conversation_b")),
    ),
    Schema(
        name="ab_history", columns="history, human_ref_A, human_ref_B, labels", read=ab_history,
        matches=lambda row: has(row, "history", "human_ref_A", "human_ref_B"),
    ),
    Schema(
        name="summaries", columns="info: {post}, summaries: [{text}], choice", read=summaries,
        matches=lambda row: has(row, "info", "summaries", "choice"),
    ),
    Schema(
        name="scored_answers", columns="question, answer_0, answer_1, score_0, score_1", read=scored_answers,
        matches=lambda row: has(row, "answer_0", "answer_1", "score_0", "score_1"),
    ),
    Schema(
        name="judged_pair", columns="prompt, response_a, response_b, winner (or several judges)", read=judged_pair,
        matches=lambda row: (
            _answers(row) is not None and _judged(row) and any(has(row, c) for c in PROMPT_COLUMNS)
        ),
    ),
]  # fmt: skip
