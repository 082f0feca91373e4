"""Reads prompts: from columns of their own, or as what two whole dialogues share."""

from __future__ import annotations

import re

from prefopt.data.fields import ROLES, blank, first, message, messages, simple, string
from prefopt.data.record import Message, RowError, Text
from prefopt.data.rows import Row
from prefopt.data.schemas.base import is_turns

# Columns that hold the prompt in published sets, apart from prompt, question and instruction.
PROMPT_NAMES = (
    "query", "input", "context", "messages", "conversation", "conversations", "dialogue", "history", "user", "human",
    "post", "problem", "text", "user_prompt", "user_input", "user_query", "request", "title", "passage", "article",
)  # fmt: skip
MARKS = re.compile(
    r"(?:^|\s|<\|?|\[)(?:human|user|q|question|prompt|instruction|post)\s*(?::|\|?>|\])"
    r".*?(?:^|\s|<\|?|\[)(?:assistant|a|answer|bot|ai|model|gpt|response|tl;dr|output)\s*(?::|\|?>|\])",
    re.IGNORECASE | re.DOTALL,
)
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def prompt_of(row: Row, column: str = "prompt") -> Text:
    """The prompt column, after the `system` and `history` columns if the row has them."""
    value = row.get(column)
    prompt: Text = messages(value, column) if is_turns(value) else string(value, column)
    history = _history(row.get("history"))
    if not history and not system_of(row):
        return prompt
    turns = user(prompt) if isinstance(prompt, str) else prompt
    if history and turns[0]["role"] == "system":
        return with_system(row, (turns[0], *history, *turns[1:]))
    return with_system(row, (*history, *turns))


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
    """(The turns before the last one, the last one) of a dialogue that ends with an assistant turn.

    An answer that follows another assistant turn continues it as a paragraph of its own, as in `merge_speakers`.
    """
    if turns[-1]["role"] != "assistant":
        raise RowError("not_an_answer", f"the last turn of {column!r} is {turns[-1]['role']}'s, not the assistant's")
    if len(turns) == 1:
        raise RowError("empty_prompt", f"{column!r} has an answer, but no prompt")
    *earlier, before, last = turns
    if before["role"] == "assistant" and not before.get("tool_calls") and last["content"]:
        before = {**before, "content": before["content"] + "\n\n"}
    return (*earlier, before), simple((last,))


def shared_turns(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> tuple[Text, Text, Text]:
    """(prompt, chosen, rejected) of two whole dialogues, which part at an answer: the last one, or an earlier one."""
    prompt, good = split_answer(chosen, "chosen")
    other, bad = split_answer(rejected, "rejected")
    if prompt == other:
        return prompt, good, bad
    parting = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), 0)
    shared = chosen[:parting]
    asked = any(turn["role"] == "user" for turn in shared) and shared[-1]["role"] != "assistant"
    if not asked or {chosen[parting]["role"], rejected[parting]["role"]} != {"assistant"}:
        raise RowError(
            "prompt_mismatch",
            "the sides part at a turn that is not the assistant's, so they answer different prompts and cannot be "
            "compared; each can be used with a label: as rows of `messages` and `label`, true for chosen, else false",
        )
    return shared, simple(chosen[parting:]), simple(rejected[parting:])


def named_prompt(row: Row) -> Text:
    """The prompt from a column of another name.

    Raises:
        RowError: several columns could be the prompt.
    """
    columns = prompt_names(row)
    if len(columns) != 1:
        raise RowError(
            "ambiguous_prompt",
            f"the columns {' and '.join(columns)} could be the prompt; choose with 'data.fields={{prompt: COLUMN}}'",
        )
    value = row[columns[0]]
    if is_turns(value) and messages(value, columns[0])[-1]["role"] == "assistant":
        raise RowError(
            "ambiguous_prompt",
            f"{columns[0]!r} ends with an answer: give the turns before it, data.fields={{prompt: COLUMN}}",
        )
    if columns[0] != "history":
        return prompt_of(row, columns[0])
    turns = messages(row["history"], "history") if is_turns(row["history"]) else string(row["history"], "history")
    return with_system(row, user(turns) if isinstance(turns, str) else turns) if system_of(row) else turns


def prompt_names(row: Row) -> list[str]:
    """The columns of the row that could be its prompt, by their names and types."""
    return [name for name, value in row.items() if name in PROMPT_NAMES and _is_text(value)]


def agreed(given: Text, turns: Text) -> Text:
    """The prompt that a column of its own and whole dialogues both give.

    Turns that only one of them has must come before what both have. A text must be what one of the user's turns says.

    Raises:
        RowError: they differ.
    """
    assert not isinstance(turns, str)
    if isinstance(given, str):
        said = [turn["content"] for turn in turns if turn["role"] == "user"]
        if _words(given) in {_words(text) for text in (*said, *[turn["content"] for turn in turns], " ".join(said))}:
            return turns
    else:
        longer, shorter = (given, turns) if len(given) > len(turns) else (turns, given)
        if all(turn["role"] == "system" for turn in given) and turns[0]["role"] != "system":
            return (*given, *turns)
        if list(map(_said, longer[len(longer) - len(shorter) :])) == list(map(_said, shorter)):
            return longer
        # The first turns alone, as a column of first prompts has them.
        if list(map(_said, turns[: len(given)])) == list(map(_said, given)):
            return turns
    raise RowError("prompt_mismatch", "the prompt column says something else than the dialogues of chosen and rejected")


def with_system(row: Row, turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns after the row's system text.

    Raises:
        RowError: the turns begin with another system text.
    """
    system = system_of(row)
    if system and turns[0]["role"] == "system":
        if _words(system[0]["content"]) != _words(turns[0]["content"]):
            raise RowError("prompt_mismatch", "the system column and the system turn of the dialogue differ")
        return turns
    return (*system, *turns)


def shared_text(chosen: str, rejected: str) -> tuple[Text, Text, Text]:
    """(prompt, chosen, rejected) of two texts with a common beginning that has marks of speakers, cut at whitespace.

    Without marks, what the texts share may be the beginning of two answers. A space goes to the completion, as
    tokenizers split words; a line break stays in the prompt.
    """
    length = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    common = chosen[: min(len(chosen), len(rejected)) - 1 if length is None else length]
    cut = max((match.end() for match in re.finditer(r"\s", common)), default=0)
    cut -= common[:cut].endswith(" ")
    if blank(common[:cut]):
        raise RowError("no_shared_prompt", "the row has no prompt column, and the two sides share no beginning")
    if not MARKS.search(common[:cut]):
        raise RowError(
            "no_shared_prompt",
            "the row has no known prompt column, and what the two sides share is not a dialogue with marks such as "
            "'Human:' and 'Assistant:'; name the prompt with 'data.fields={prompt: COLUMN}'",
        )
    return chosen[:cut], chosen[cut:], rejected[cut:]


def is_dialogue(value: object) -> bool:
    """Whether a value is a whole dialogue: several chat turns of which the first is not the assistant's."""
    if not isinstance(value, list) or len(value) < 2 or not is_turns(value):
        return False
    return ROLES.get(str(first(value[0], "role", "from")).lower()) != "assistant"


def is_open(value: object) -> bool:
    """Whether a value is chat turns that wait for an answer: the last one is the user's or a tool's."""
    if not isinstance(value, list) or not is_turns(value) or not isinstance(value[-1], dict):
        return False
    return ROLES.get(str(first(value[-1], "role", "from")).lower()) in ("user", "tool")


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


def _is_text(value: object) -> bool:
    return is_turns(value) or (isinstance(value, str) and not blank(value))


def _words(text: str) -> str:
    return " ".join(text.split())


def _said(turn: Message) -> tuple[str, str]:
    return turn["role"], _words(turn["content"])


def _history(value: object) -> tuple[Message, ...]:
    """Earlier turns as [[question, answer], ...]."""
    if value is None or value == [] or (isinstance(value, str) and blank(value)):
        return ()
    if is_turns(value):
        return messages(value, "history")
    if not isinstance(value, list) or not all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in value):
        raise RowError("wrong_type", "'history' must be a list of [question, answer]")
    return tuple(
        {"role": role, "content": string(said, "history")}
        for turn in value
        for role, said in zip(("user", "assistant"), turn, strict=True)
    )
