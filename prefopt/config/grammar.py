"""Writes values in the grammar of Hydra's overrides, and quotes names and texts that the grammar would misread."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

# What the grammar reads as text without quotes: starts with a letter or a slash, and is no keyword. Inside a list or a
# dict a colon needs quotes.
PLAIN = re.compile(r"(?!(?i:null|true|false|nan|inf)$)[A-Za-z/][A-Za-z0-9_./:-]*")
# Options whose values are names of files, or texts.
TEXT = re.compile(
    r"(?:stages\.[\w-]+\.|methods\.[\w-]+\.)?"
    r"(?:model\.(?:path|reference)|data\.(?:path|eval_path|template|cache_dir)|tracking\.(?:project|run_name)"
    r"|output_dir|reference_folder|stages_folder|resume|judge)"
)
MULTIRUN = ("-m", "--multirun")


def value_of(value: Any, *, inside: bool = False) -> str:
    """A value in Hydra's grammar, which has quoted strings and JSON-like lists and dicts."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return str(value)  # inf and nan as Hydra spells them
    if isinstance(value, str):
        plain = PLAIN.fullmatch(value) and not (inside and ":" in value)
        return value if plain else quoted(value.replace("${", r"\${"))  # else an interpolation
    if isinstance(value, list | tuple):
        return f"[{','.join(value_of(item, inside=True) for item in value)}]"
    keys = (re.sub(r"[\\()\[\]{}:=, \t]", r"\\\g<0>", str(key)) for key in value)
    return "{" + ",".join(f"{k}:{value_of(v, inside=True)}" for k, v in zip(keys, value.values(), strict=True)) + "}"


def quoted(text: str) -> str:
    """A text in quotes; in them a backslash is one, except before a quote."""
    doubled = re.sub(r"(\\+)('|$)", r"\1\1\2", text)
    return "'" + doubled.replace("'", "\\'") + "'"


def literal(words: Iterable[str]) -> list[str]:
    """The words of a command line, with quotes around names of files and texts that Hydra's grammar would misread.

    These are what it cannot parse, such as `data.path=p/a=b.jsonl` and `model.path=数据`, and what it takes for another
    type although a file has this name, such as `data.path=a,b.jsonl`.
    """
    words = list(words)
    several = any(word in MULTIRUN for word in words)
    return [_literal(word, several=several) for word in words]


def _literal(word: str, *, several: bool) -> str:
    key, equals, value = word.partition("=")
    if not equals or not TEXT.fullmatch(key.lstrip("+")) or _read_as_text(word, value):
        return word
    parts = value.split(",") if several and not os.path.exists(value) else [value]
    return f"{key}={','.join(map(quoted, parts))}"


def _read_as_text(word: str, value: str) -> bool:
    """Whether the grammar takes a value as it is meant; only a file's name can tell that a list is meant as a text."""
    try:
        override = _parser().parse_override(word)
    except HydraException:
        return False
    text = not override.is_sweep_override() and isinstance(override.value(), str | None)
    return text or not os.path.exists(value)


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()
