"""Reads pairs of a chosen and a rejected completion."""

from __future__ import annotations

from prefopt.data.fields import blank, messages, number, simple, string
from prefopt.data.make import pair, with_facts
from prefopt.data.record import Record, RowError, Text
from prefopt.data.rows import Row
from prefopt.data.schemas.base import Made, Schema, fact, has, is_turns
from prefopt.data.schemas.prompts import (
    agreed,
    completion_of,
    instruction,
    is_dialogue,
    is_transcript,
    merge_speakers,
    named_prompt,
    prompt_names,
    prompt_of,
    shared_text,
    shared_turns,
    system_of,
    transcript,
    user,
    with_system,
)

SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
)


def hh_rlhf(row: Row) -> list[Made]:
    """Whole transcripts on both sides, which share the prompt."""
    sides = (transcript(row.get(side), side) for side in ("chosen", "rejected"))
    prompt, chosen, rejected = shared_turns(*sides)
    return [_judged(row, merge_speakers(prompt), merge_speakers(chosen), merge_speakers(rejected))]


def prompt_pair(row: Row) -> list[Made]:
    """A prompt and two answers; of whole dialogues on both sides only the last turns are the answers."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if is_dialogue(chosen) and is_dialogue(rejected):
        prompt, good, bad = shared_turns(
            with_system(row, messages(chosen, "chosen")), with_system(row, messages(rejected, "rejected"))
        )
        if (given := row.get("prompt")) is not None:
            prompt = agreed(messages(given, "prompt") if is_turns(given) else string(given, "prompt"), prompt)
        return [_judged(row, prompt, good, bad)]
    good, bad = completion_of(chosen, "chosen"), completion_of(rejected, "rejected")
    return [_judged(row, prompt_of(row), good, bad)]


def implicit_prompt(row: Row) -> list[Made]:
    """Whole dialogues on both sides, or texts with a common beginning."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if is_turns(chosen) or is_turns(rejected):
        sides = shared_turns(
            with_system(row, messages(chosen, "chosen")), with_system(row, messages(rejected, "rejected"))
        )
    else:
        sides = shared_text(string(chosen, "chosen"), string(rejected, "rejected"))
    return [_judged(row, *sides)]


def step_pair(row: Row) -> list[Made]:
    """Step-DPO: a problem, the steps that both sides share, and the next step of each, after which more follow."""
    steps = string(row.get("initial_reason_steps"), "initial_reason_steps")
    prompt = prompt_of(row)
    turns = user(prompt) if isinstance(prompt, str) else prompt
    if not blank(steps):
        turns = (*turns, {"role": "assistant", "content": steps})
    made = _judged(row, turns, *(string(row.get(side), side) for side in ("chosen", "rejected")))
    return [with_facts(made, {}, (False, False))]


def query_pair(row: Row) -> list[Made]:
    """A prompt in a column of another name, such as query or problem, and two answers."""
    sides = (completion_of(row.get(side), side) for side in ("chosen", "rejected"))
    return [_judged(row, named_prompt(row), *sides)]


def instruction_pair(row: Row) -> list[Made]:
    """An instruction, its input if any, and two answers."""
    sides = (completion_of(row.get(side), side) for side in ("chosen", "rejected"))
    return [_judged(row, instruction(row), *sides)]


def question_pair(row: Row) -> list[Made]:
    """A question, its system text if any, and two answers."""
    question = (*system_of(row), *user(string(row.get("question"), "question")))
    sides = (completion_of(row.get(side), side) for side in ("chosen", "rejected"))
    return [_judged(row, question, *sides)]


def sharegpt_pair(row: Row) -> list[Made]:
    """A dialogue in `conversations`, and two answers to it."""
    dialogue = with_system(row, messages(row.get("conversations"), "conversations"))
    sides = (completion_of(row.get(side), side) for side in ("chosen", "rejected"))
    return [_judged(row, dialogue, *sides)]


def message_columns(row: Row) -> list[Made]:
    """Whole dialogues in `chosen_messages` and `rejected_messages`."""
    sides = (with_system(row, messages(row.get(column), column)) for column in ("chosen_messages", "rejected_messages"))
    return [_judged(row, *shared_turns(*sides))]


def rejected_response(row: Row) -> list[Made]:
    """ms-swift's pairs: a dialogue that ends with the chosen answer, and the rejected answer or dialogue."""
    dialogue = with_system(row, messages(row.get("messages"), "messages"))
    if has(row, "rejected_messages"):
        other = with_system(row, messages(row["rejected_messages"], "rejected_messages"))
        return [_judged(row, *shared_turns(dialogue, other))]
    asked = 1 + max((i for i, turn in enumerate(dialogue) if turn["role"] == "user"), default=-1)
    if not 0 < asked < len(dialogue):
        raise RowError("not_an_answer", "'messages' must end with an answer to a user's turn, which is the chosen one")
    rejected = completion_of(row.get("rejected_response"), "rejected_response")
    return [_judged(row, dialogue[:asked], simple(dialogue[asked:]), rejected)]


def _judged(row: Row, prompt: Text, chosen: Text, rejected: Text) -> Record:
    """The pair, with what the row says of how its sides compare."""
    margin, probability = fact(row, "margin"), fact(row, "probability")
    scores = _scores(row)
    if scores is None and margin is not None:
        scores = margin, 0.0
    return pair(prompt, chosen, rejected, scores=scores, margin=margin, probability=probability)


def _scores(row: Row) -> tuple[float, float] | None:
    """The scores of the two sides, under their usual names."""
    for chosen, rejected in SCORES:
        if has(row, chosen, rejected):
            return number(row[chosen], chosen), number(row[rejected], rejected)
    return None


def _dialogues(row: Row) -> bool:
    return all(is_dialogue(row[side]) for side in ("chosen", "rejected"))


def _both(row: Row) -> bool:
    return has(row, "chosen", "rejected")


SCHEMAS = [
    Schema(
        name="message_columns", columns="chosen_messages, rejected_messages", read=message_columns,
        matches=lambda row: has(row, "chosen_messages", "rejected_messages"),
    ),
    Schema(
        name="sharegpt_pair", columns="conversations, chosen, rejected", read=sharegpt_pair,
        matches=lambda row: _both(row) and is_turns(row.get("conversations")),
    ),
    Schema(
        name="rejected_response", columns="messages, rejected_response (or rejected_messages)", read=rejected_response,
        matches=lambda row: (
            is_turns(row.get("messages")) and (has(row, "rejected_response") or has(row, "rejected_messages"))
        ),
    ),
    Schema(
        name="step_pair", columns="prompt, initial_reason_steps, chosen, rejected", read=step_pair,
        matches=lambda row: _both(row) and has(row, "prompt", "initial_reason_steps"),
    ),
    Schema(
        name="prompt_pair", columns="prompt, chosen, rejected", read=prompt_pair,
        matches=lambda row: _both(row) and has(row, "prompt"),
    ),
    Schema(
        name="instruction_pair", columns="instruction, input, chosen, rejected", read=instruction_pair,
        matches=lambda row: _both(row) and has(row, "instruction"),
    ),
    Schema(
        name="question_pair", columns="system, question, chosen, rejected", read=question_pair,
        matches=lambda row: _both(row) and has(row, "question"),
    ),
    Schema(
        name="hh_rlhf", columns="chosen, rejected (transcripts)", read=hh_rlhf,
        matches=lambda row: is_transcript(row.get("chosen")) and is_transcript(row.get("rejected")),
    ),
    Schema(
        name="query_pair", columns="query (or problem, post, input, context, messages, ...), chosen, rejected",
        read=query_pair, matches=lambda row: _both(row) and bool(prompt_names(row)) and not _dialogues(row),
    ),
    Schema(
        name="implicit_prompt", columns="chosen, rejected (whole dialogues)", read=implicit_prompt, matches=_both,
    ),
]  # fmt: skip
