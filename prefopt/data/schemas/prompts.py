"""Reads prompts: from columns of their own, or as what two whole dialogues share."""

from __future__ import annotations

import re

from prefopt.data.fields import ROLES, blank, first, message, messages, simple, string
from prefopt.data.record import Message, RowError, Text
from prefopt.data.rows import Row
from prefopt.data.schemas.base import is_turns

TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def prompt_of(row: Row, column: str = "prompt") -> Text:
    """The prompt column, after the `system` and `history` columns if the row has them."""
    value = row.get(column)
    prompt: Text = messages(value, column) if is_turns(value) else string(value, column)
    before = (*system_of(row), *_history(row.get("history")))
    if not before:
        return prompt
    return before + (user(prompt) if isinstance(prompt, str) else prompt)


def instruction(row: Row) -> Text:
    """`instruction`, followed by `input` if there is one, as one user turn."""
    asked = string(row.get("instruction"), "instruction")
    given = row.get("input")
    if given is not None and not blank(given := string(given, "input")):
        asked = f"{asked}\n\n{given}"
    return (*system_of(row), *_history(row.get("history")), *user(asked))


def system_of(row: Row) -> tuple[Message, ...]:
    """The `system` (or `system_prompt`) column as a turn; none if it is absent or blank."""
    for column in ("system", "system_prompt"):
        if row.get(column) is not None and not blank(text := string(row[column], column)):
            return ({"role": "system", "content": text},)
    return ()


def user(text: str) -> tuple[Message, ...]:
    """One user turn."""
    return ({"role": "user", "content": text},)


def completion_of(value: object, column: str) -> Text:
    """A completion: text, one assistant message, or several turns."""
    if isinstance(value, dict):
        return simple((message(value, column, "assistant"),))
    if is_turns(value):
        return simple(messages(value, column))
    return string(value, column)


def split_answer(turns: tuple[Message, ...], column: str) -> tuple[tuple[Message, ...], Text]:
    """(The turns before the last one, the last one) of a dialogue that ends with an assistant turn."""
    if turns[-1]["role"] != "assistant":
        raise RowError("not_an_answer", f"the last turn of {column!r} is {turns[-1]['role']}'s, not the assistant's")
    if len(turns) == 1:
        raise RowError("empty_prompt", f"{column!r} has an answer, but no prompt")
    return turns[:-1], simple(turns[-1:])


def shared_turns(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> tuple[Text, Text, Text]:
    """(prompt, chosen, rejected) of two whole dialogues that differ only in their last answer."""
    prompt, good = split_answer(chosen, "chosen")
    other, bad = split_answer(rejected, "rejected")
    if prompt != other:
        raise RowError("prompt_mismatch", "the sides differ before their last turn: they answer different prompts")
    return prompt, good, bad


def shared_text(chosen: str, rejected: str) -> tuple[Text, Text, Text]:
    """(prompt, chosen, rejected) of two texts with a common beginning, cut at its last whitespace.

    A space goes to the completion, as tokenizers split words; a line break stays in the prompt.
    """
    length = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    common = chosen[: min(len(chosen), len(rejected)) - 1 if length is None else length]
    cut = max((match.end() for match in re.finditer(r"\s", common)), default=0)
    cut -= common[:cut].endswith(" ")
    if blank(common[:cut]):
        raise RowError("no_shared_prompt", "the row has no prompt column, and the two sides share no beginning")
    return chosen[:cut], chosen[cut:], rejected[cut:]


def is_dialogue(value: object) -> bool:
    """Whether a value is a whole dialogue: several chat turns of which the first is not the assistant's."""
    if not isinstance(value, list) or len(value) < 2 or not is_turns(value):
        return False
    return ROLES.get(str(first(value[0], "role", "from")).lower()) != "assistant"


def is_transcript(value: object) -> bool:
    r"""Whether a text is a dialogue in the form `\n\nHuman: ...\n\nAssistant: ...`."""
    return isinstance(value, str) and TURN.match(value) is not None and "\n\nAssistant:" in value


def transcript(value: object, column: str) -> tuple[Message, ...]:
    """The turns of a `Human:`/`Assistant:` transcript.

    The space after the colon belongs to the marker; a marker inside a paragraph is part of the text. Two turns of one
    speaker in a row stay two, see `merge_speakers`.
    """
    text = string(value, column)
    if not is_transcript(text):
        raise RowError("not_a_transcript", f"{column!r} is not a dialogue of paragraphs 'Human: ...', 'Assistant: ...'")
    pieces = TURN.split(text)[1:]
    return tuple(
        {"role": ROLES[marker.lower()], "content": said.removeprefix(" ")}
        for marker, said in zip(pieces[::2], pieces[1::2], strict=True)
    )


def open_transcript(prompt: Text) -> Text:
    """The turns of a prompt in transcript form that ends with an open assistant turn; any other prompt unchanged."""
    if not isinstance(prompt, str) or not is_transcript(text := "\n\n" + prompt.strip()):
        return prompt
    *turns, last = transcript(text, "prompt")
    return tuple(turns) if last["role"] == "assistant" and blank(last["content"]) else (*turns, last)


def merge_speakers(turns: Text) -> Text:
    """Join successive turns of one speaker, because some templates require that speakers alternate."""
    if isinstance(turns, str):
        return turns
    merged: list[Message] = []
    for turn in turns:
        if merged and merged[-1]["role"] == turn["role"]:
            merged[-1] = {**turn, "content": f"{merged[-1]['content']}\n\n{turn['content']}"}
        else:
            merged.append(turn)
    return tuple(merged)


def _history(value: object) -> tuple[Message, ...]:
    """Earlier turns as [[question, answer], ...]."""
    if value is None or value == []:
        return ()
    if not isinstance(value, list) or not all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in value):
        raise RowError("wrong_type", "'history' must be a list of [question, answer]")
    return tuple(
        {"role": role, "content": string(said, "history")}
        for turn in value
        for role, said in zip(("user", "assistant"), turn, strict=True)
    )
