"""Reads what a row says of its rendering beside the turns: tools, arguments of the template, open completions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from prefopt.data.fields import blank, label, shown
from prefopt.data.record import RowError

ARGUMENTS, TOOLS, ENDED = "chat_template_kwargs", ("tools", "functions"), "ended"  # columns
# Arguments of `apply_chat_template` that prefopt gives itself, and names that every template has.
RESERVED = {
    "messages", "conversation", "conversations", "tools", "documents", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict",
    "return_assistant_tokens_mask", "tokenizer_kwargs",
}  # fmt: skip


def row_arguments(row: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a row has for the template: its tools, and the keys of `chat_template_kwargs`."""
    found: dict[str, Any] = {}
    given = _structure(row.get(ARGUMENTS), ARGUMENTS)
    if given is not None:
        if not isinstance(given, Mapping):
            raise RowError("wrong_type", f"{ARGUMENTS!r} must be an object of arguments, not {shown(given)}")
        found = _without_nulls(given)
        if wrong := reserved(found):
            raise RowError("bad_template_argument", f"{ARGUMENTS!r} has {wrong!r}, which is not for a row to set")
    for column in TOOLS:
        if _holds(value := _structure(row.get(column), column)):
            found["tools"] = [_tool(one, column) for one in (value if isinstance(value, list) else [value])]
    return found


def common_fact(what: str, given: Iterable[Any]) -> Any:
    """What the rows of one record say, of which some may say nothing; None where all do.

    Raises:
        RowError: they say different things.
    """
    said = [one for one in given if one not in (None, {})]
    other = next((one for one in said if one != said[0]), None)
    if other is not None:
        detail = f"the rows of one record have different {what}: {shown(said[0])}, {shown(other)}"
        raise RowError("rows_disagree", f"{detail}; give them all the same, or leave the column out with data.ignore")
    return said[0] if said else None


def row_ended(row: Mapping[str, Any]) -> bool | tuple[bool, ...] | None:
    """Whether the row's completions end their turns: the column `ended`, one value or one for each."""
    value = row.get(ENDED)
    if isinstance(value, str):
        value = _structure(value, ENDED) if value.lstrip().startswith("[") else None if blank(value) else value
    if value is None:
        return None
    return tuple(label(one, ENDED) for one in value) if isinstance(value, list) else label(value, ENDED)


def all_ended(rows: Iterable[Mapping[str, Any]], default: bool) -> tuple[bool, ...] | None:
    """The column `ended` of rows with one completion each, `default` where a row says nothing; None where all do."""
    said = [row_ended(row) for row in rows]
    if any(isinstance(one, tuple) for one in said):
        raise RowError("wrong_type", f"{ENDED!r} must be one value: each row has one completion")
    return None if set(said) == {None} else tuple(default if one is None else one is True for one in said)


def reserved(arguments: Mapping[str, Any]) -> str | None:
    """The first argument that is not the user's to set."""
    return next((str(name) for name in arguments if name in RESERVED), None)


def unknown(names: Iterable[str], source: str) -> str | None:
    """The first argument of which a template's source does not have the name, and which would change nothing."""
    return next((str(name) for name in names if not re.search(rf"\b{re.escape(str(name))}\b", source)), None)


def tool_names(tools: list[dict[str, Any]]) -> list[str]:
    """The names of the functions."""
    return [str(tool.get("function", tool).get("name", "")) for tool in tools]


def _tool(value: Any, column: str) -> dict[str, Any]:
    """A tool as templates expect it: {type: function, function: {name, description, parameters}}."""
    value = _structure(value, column)
    if not isinstance(value, Mapping):
        raise RowError("bad_tool", f"a tool in {column!r} must be an object, not {shown(value)}")
    made: dict[str, Any] = _without_nulls(value)
    if isinstance(function := made.get("function"), str):  # a function as JSON text
        made["function"] = _structure(function, column)
    elif "function" not in made and "name" in made and "type" not in made:
        made = {"type": "function", "function": made}
    inner = made.get("function", made)
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise RowError("bad_tool", f"a tool in {column!r} has no function with a name: {shown(value)}")
    if isinstance(parameters := inner.get("parameters"), str):
        inner["parameters"] = _structure(parameters, column)
    return made


def _holds(value: Any) -> bool:
    """Whether a value says anything; objects of nulls, as Arrow fills absent ones, do not."""
    if isinstance(value, Mapping | list):
        return any(map(_holds, value.values() if isinstance(value, Mapping) else value))
    return value is not None and value != ""


def _structure(value: Any, name: str) -> Any:
    """The value, or what it holds as JSON text; None for nothing."""
    if not isinstance(value, str):
        return value
    if blank(value):
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise RowError("wrong_type", f"{name!r} is not JSON: {shown(value)}") from None


def _without_nulls(value: Any) -> Any:
    """Plain JSON values without the nulls that Arrow puts in place of absent keys."""
    if isinstance(value, Mapping):
        return {str(key): _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list | tuple) else value
