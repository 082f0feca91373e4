"""Reads the fields of a row: texts, numbers, labels, and chat messages in every spelling that data sets use."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from prefopt.data.record import Message, RowError, Text, is_trained

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user", "question": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "bing": "assistant",
    "chatbot": "assistant", "model": "assistant", "answer": "assistant", "function_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "tool_response": "tool", "ipython": "tool",
}  # fmt: skip

LARGEST = 1e38  # float32 ends at 3.4e38
NUMBER = re.compile(r"[+-]?\d{1,9}(\.\d*)?")
INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"))


def blank(text: str) -> bool:
    """Whether a text has no visible character."""
    stripped = text.strip()
    return not stripped or (ord(stripped[0]) in INVISIBLE and not stripped.translate(INVISIBLE).strip())


def string(value: Any, name: str) -> str:
    """A text field, unchanged; RowError if it is absent, of another type, or not valid Unicode."""
    if value is None:
        raise RowError(
            "missing_field", f"no {name!r} in this row; if it has another name there, map it with data.fields"
        )
    if not isinstance(value, str):
        raise RowError("wrong_type", f"{name!r} must be text, not {type_of(value)} {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            "bad_unicode", f"{name!r} has a lone surrogate at character {error.start}; fix the file's encoding"
        ) from None
    return value


def type_of(value: Any) -> str:
    """The name of a value's type as in a file: dict for any mapping."""
    return "dict" if isinstance(value, Mapping) else type(value).__name__


def shown(value: Any) -> str:
    """The beginning of a value of any size, for a message."""
    return f"{reprlib.repr(value):.40}"


def plain(value: float) -> str:
    """A number as labels are written: 1 for 1.0."""
    try:
        return f"{value:g}"
    except OverflowError:
        return "a huge number"


def number(value: Any, name: str) -> float:
    """A finite number, also as a string (as in CSV files) or a decimal (as in Parquet), but not a boolean.

    One past `LARGEST` is refused, too: it, or its difference to another, would be infinite where losses read it.
    """
    if value is None:
        raise RowError("missing_field", f"no {name!r} in this row")
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise RowError("wrong_type", f"{name!r} must be a number, not {shown(value)}") from None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise RowError("wrong_type", f"{name!r} must be a number, not {type_of(value)}")
    if not isinstance(value, int) and not math.isfinite(value):
        raise RowError("not_finite", f"{name!r} is {value}")
    if not -LARGEST <= value <= LARGEST:
        raise RowError("not_finite", f"{name!r} is beyond {LARGEST:g}, about the limit of float32")
    return float(value)


def code_of(value: Any) -> str:
    """A code as text, the same for each spelling of a number or boolean: 1 for 1.0 and "1.0", true for "True"."""
    text = value.strip() if isinstance(value, str) else str(value) if isinstance(value, bool | int | float) else ""
    if text.lower() in ("true", "false"):
        return text.lower()
    return plain(float(text)) if NUMBER.fullmatch(text) else text


THOUGHTS = ("reasoning_content", "reasoning", "thinking")
LABEL_COLUMNS = ("label", "kto_tag")
LABELS = {
    "true": True, "good": True, "desirable": True, "chosen": True, "1": True,
    "false": False, "bad": False, "undesirable": False, "rejected": False, "0": False, "-1": False,
}  # fmt: skip


def label(value: Any, name: str = "label") -> bool:
    """A desirable/undesirable label: a boolean, 1 and 0 (or -1), or one of the usual words."""
    if value is None:
        raise RowError("missing_field", f"no {name!r} in this row")
    if isinstance(value, bool):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise RowError("not_finite", f"{name!r} is {value}")
    key = code_of(value)
    if key.lower() not in LABELS:
        error = RowError("bad_label", f"{name!r} must be true or false (or 1/0, good/bad), not {shown(value)}")
        error.code = f"{name}={key}" if NUMBER.fullmatch(key) else ""
        raise error
    return LABELS[key.lower()]


def content(value: Any, name: str) -> str:
    """A message's content: text, or a list of text parts (`{"type": "text", "text" | "value": ...}`)."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return string(value, name)
    texts = []
    for part in value:
        if isinstance(part, str):
            texts.append(string(part, name))
            continue
        if not isinstance(part, Mapping):
            raise RowError("wrong_type", f"{name!r} must be text or a list of text parts, not {type_of(part)}")
        if part.get("type", "text") != "text":
            kind = shown(part["type"])
            raise RowError("not_text", f"{name!r} has a part of type {kind}; only text can be trained on")
        texts.append(string(first(part, "text", "value"), f"{name}.text"))
    return "".join(texts)


def message(value: Any, name: str, default_role: str | None = None) -> Message:
    """One turn, from `{role, content}`, `{from, value}`, `{role, text}`, or a string where the role is known."""
    if isinstance(value, str) and default_role is not None:
        return {"role": default_role, "content": string(value, name)}
    if not isinstance(value, Mapping):
        raise RowError("wrong_type", f"{name!r} must be a message such as {{role, content}}, not {type_of(value)}")
    spoken = first(value, "role", "from", "user") or default_role
    if not isinstance(spoken, str) or spoken.strip().lower() not in ROLES:
        raise RowError("unknown_role", f"{name!r} has the role {shown(spoken)}; known roles are {sorted(ROLES)}")
    calls = first(value, "tool_calls", "function_call")
    said = first(value, "content", "value", "text", "body")
    turn: Message = {
        "role": ROLES[spoken.strip().lower()],
        "content": content("" if said is None and calls else said, f"{name}.content"),
    }
    if calls:
        turn["tool_calls"] = tool_calls(calls, name)
    for key in ("name", "tool_call_id"):
        if isinstance(value.get(key), str):
            turn[key] = string(value[key], f"{name}.{key}")
    if turn["role"] == "assistant":
        if (thoughts := first(value, *THOUGHTS)) is not None and not blank(string(thoughts, f"{name}.{THOUGHTS[0]}")):
            turn["reasoning_content"] = thoughts
        for key in ("train", "weight"):  # as OpenAI marks turns
            if {**value}.get(key) == 0 and value[key] == 0:
                turn["train"] = False
    return turn


def tool_calls(value: Any, name: str) -> list[dict[str, Any]]:
    """The tool calls of a turn as templates expect them: {type: function, function: {name, arguments}}.

    Arguments that are written as JSON are parsed, so that templates encode them once.
    """
    value = _json(value, f"{name}.tool_calls") if isinstance(value, str) else value
    calls = []
    for call in value if isinstance(value, list) else [value]:
        if not isinstance(call, Mapping):
            raise RowError("bad_tool_call", f"a tool call in {name!r} must be an object, not {shown(call)}")
        made = {key: held for key, held in json.loads(json.dumps(call, default=str)).items() if held is not None}
        if "function" not in made:
            inner = {key: made.pop(key) for key in ("name", "arguments") if key in made}
            made |= {"type": "function", "function": inner}
        inner = made["function"]
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or blank(inner["name"]):
            raise RowError("bad_tool_call", f"a tool call in {name!r} has no function with a name: {shown(call)}")
        if isinstance(arguments := inner.get("arguments"), str):
            inner["arguments"] = {} if blank(arguments) else _json(arguments, f"the arguments of a call in {name!r}")
        elif arguments is None:
            inner["arguments"] = {}
        if not isinstance(inner["arguments"], dict):
            raise RowError("bad_tool_call", f"a tool call in {name!r} needs an object of arguments: {shown(call)}")
        calls.append(made)
    return calls


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RowError("bad_tool_call", f"{what} are not JSON: {shown(text)}") from None


def messages(value: Any, name: str) -> tuple[Message, ...]:
    """A non-empty list of turns; also a JSON list in a string (as in CSV files)."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowError("wrong_type", f"{name!r} looks like a JSON list but is not one") from None
    if value is None:
        raise RowError(
            "missing_field", f"no {name!r} in this row; if it has another name there, map it with data.fields"
        )
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise RowError("wrong_type", f"{name!r} must be a list of messages, not {type_of(value)}")
    if not value:
        raise RowError("empty_messages", f"{name!r} has no messages")
    return tuple(message(turn, name) for turn in value)


def first(value: Mapping[str, Any], *names: str) -> Any:
    """The value of the first of these fields that is not null."""
    for name in names:
        if (held := value.get(name)) is not None:
            return held
    return None


def simple(turns: tuple[Message, ...]) -> Text:
    """A completion of one plain assistant turn as its text; anything else (tool calls, several turns) as turns."""
    if len(turns) == 1 and is_trained(turns[0]) and not {"tool_calls", "reasoning_content"} & turns[0].keys():
        return turns[0]["content"]
    return turns
