"""Reads several completions of one prompt, with scores or ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from prefopt.data.fields import blank, first, label, number, string
from prefopt.data.make import ranked
from prefopt.data.record import RowError
from prefopt.data.row_facts import ARGUMENTS, TOOLS, all_ended
from prefopt.data.rows import Row
from prefopt.data.schemas.base import ENDED_DEFAULT, MEMBERS, PLACES, Made, Schema, has, is_turns, joined
from prefopt.data.schemas.prompts import completion_of, instruction, open_transcript, prompt_of, user

ATTRIBUTES = ("helpfulness", "correctness", "coherence")  # 0 to 4; not verbosity and complexity, which are no merit
PROMPT = ("prompt", "system", "system_prompt", "history", *TOOLS, ARGUMENTS)


def graded_solutions(row: Row) -> list[Made]:
    """A question, and a column per model with its graded solution; right is 1, wrong is 0."""
    graded = [row[name] for name, value in row.items() if _graded(value)]
    return [
        ranked(
            user(string(row.get("question"), "question")),
            [string(answer["solution"], "solution") for answer in graded],
            [float(label(answer["is_correct"], "is_correct")) for answer in graded],
        )
    ]


def rated_completions(row: Row) -> list[Made]:
    """UltraFeedback: an instruction and `completions`, each with a response and a score.

    The fine-grained score, a mean of four aspects, is preferred: some overall scores are known to be wrong.
    """
    answers = _objects(row.get("completions"), "completions")
    return [
        ranked(
            instruction(row),
            [completion_of(first(answer, "response", "text", "completion"), "response") for answer in answers],
            [number(first(answer, "fine-grained_score", "overall_score", "score"), "score") for answer in answers],
        )
    ]


def ranked_answers(row: Row) -> list[Made]:
    """A prompt and `answers`, each with a rank, 1 the best; the score is minus the rank."""
    answers = _objects(row.get("answers"), "answers")
    return [
        ranked(
            open_transcript(prompt_of(row)),
            [string(first(answer, "answer", "text"), "answer") for answer in answers],
            [-number(answer.get("rank"), "rank") for answer in answers],
        )
    ]


def response_columns(row: Row) -> list[Made]:
    """A prompt, a list of `completions` (or `responses`), and a list of `scores`."""
    texts = first(row, "completions", "responses")
    scores = row.get("scores")
    if not isinstance(texts, list) or not isinstance(scores, list):
        raise RowError("wrong_type", "'completions' and 'scores' must be lists")
    said = [completion_of(text, "completions") for text in texts]
    return [ranked(prompt_of(row), said, [number(score, "scores") for score in scores])]


def attribute_scores(row: Row) -> list[Made]:
    """HelpSteer: the answers to one prompt, scored by the mean of helpfulness, correctness and coherence."""
    made: list[Made] = []
    texts, scores, places, prompts, answers = [], [], [], [], []
    for place, answer in zip(row[PLACES], row[MEMBERS], strict=True):
        try:
            text = string(answer.get("response"), "response")
            if blank(text):
                raise RowError("empty_completion", "the response is empty or blank")
            score = sum(number(answer.get(name), name) for name in ATTRIBUTES) / len(ATTRIBUTES)
            prompts.append(prompt_of(answer))
        except RowError as error:
            made.append(RowError(error.reason, error.detail, rows=1, place=place))
            continue
        texts.append(text)
        scores.append(score)
        places.append(place)
        answers.append(answer)
    try:
        ended = all_ended(answers, row[ENDED_DEFAULT])
        made.append(dataclasses.replace(ranked(prompts[0] if prompts else "", texts, scores), ended=ended))
    except RowError as error:
        detail = error.detail
        if error.reason == "too_few_completions":
            detail = f"{detail}; the answers to one prompt must be successive rows"
        made += [RowError(error.reason, detail, rows=1, place=place) for place in places]
    return made


def same_prompt(rows: Iterator[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    """Join successive rows with the same prompt, system text, history, tools and arguments of the template."""
    return joined(rows, lambda row: [row.get(column) or None for column in PROMPT])


def _objects(value: object, name: str) -> list[Row]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise RowError("wrong_type", f"{name!r} must be a list of objects")
    return value


def _graded(value: object) -> bool:
    return isinstance(value, dict) and has(value, "solution", "is_correct")


def _list_of(row: Row, column: str, *keys: str) -> bool:
    value = row.get(column)
    return is_turns(value) and isinstance(value, list) and any(key in value[0] for key in keys)


SCHEMAS = [
    Schema(
        name="graded_solutions", columns="question, MODEL: {solution, is_correct}, ...", read=graded_solutions,
        matches=lambda row: has(row, "question") and any(_graded(value) for value in row.values()),
    ),
    Schema(
        name="rated_completions", columns="instruction, completions: [{response, score}]", read=rated_completions,
        matches=lambda row: has(row, "instruction") and _list_of(row, "completions", "response", "overall_score"),
    ),
    Schema(
        name="ranked_answers", columns="prompt, answers: [{answer, rank}]", read=ranked_answers,
        matches=lambda row: has(row, "prompt") and _list_of(row, "answers", "rank"),
    ),
    Schema(
        name="response_columns", columns="prompt, completions: [...], scores: [...]", read=response_columns,
        matches=lambda row: has(row, "prompt", "scores") and (has(row, "completions") or has(row, "responses")),
    ),
    Schema(
        name="attribute_scores", columns="prompt, response, helpfulness, correctness, coherence", read=attribute_scores,
        matches=lambda row: has(row, "prompt", "response", *ATTRIBUTES), gather=same_prompt,
    ),
]  # fmt: skip
