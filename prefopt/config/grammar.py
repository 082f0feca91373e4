"""Writes values in the grammar of Hydra's overrides, and quotes names and texts that the grammar would misread."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from prefopt.errors import UserError

# What the grammar reads as text without quotes: starts with a letter or a slash, and is no keyword. Inside a list or a
# dict a colon needs quotes.
PLAIN = re.compile(r"(?!(?i:null|true|false|nan|inf)$)[A-Za-z/][A-Za-z0-9_./:-]*")
KEY = re.compile(r"\+{0,2}[\w.@/-]+", re.ASCII)
# Options whose values are names of files, or texts.
TEXT = re.compile(
    r"(?:stages\.[\w-]+\.|methods\.[\w-]+\.)?(?:model\.(?:path|reference|value_model)|data\.(?:path|eval_path|template|cache_dir)"
    r"|tracking\.(?:project|run_name)|judge|output_dir|reference_folder|stages_folder|resume)"
)
# A text in a list or table that needs quotes.
ODD = re.compile(r"(?<=[\[{,: ])(?!\s)[^\[\]{},:'\"]*[^\[\]{},:'\"\w.\s/+$%*@?|-][^\[\]{},:'\"]*(?=[\]},])", re.ASCII)
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
    """The words of a command line, with quotes around names and texts that Hydra's grammar would misread.

    These are what it cannot parse, such as `data.path=p/a=b.jsonl`, `model.path=数据` and `data.ignore=[数据]`, and
    names of files that it takes for something else, such as `data.path=a,b.jsonl` where this file exists.

    Raises:
        UserError: a list or table that cannot be read.
    """
    words = list(words)
    several = any(word in MULTIRUN for word in words)
    return [_literal(word, several=several) for word in words]


def _literal(word: str, *, several: bool) -> str:
    key, equals, value = word.partition("=")
    if not equals or not KEY.fullmatch(key):
        return word
    override = _parsed(word)
    if override is None and value.startswith(("[", "{")) and not TEXT.fullmatch(key):
        inner = f"{key}={ODD.sub(lambda found: quoted(found[0]), value)}"
        if _parsed(inner) is None:
            raise UserError(f"{word} is not a list or table: put texts in quotes, as in {key}=['a=b','é'], and give "
                            "tables with other keys than words in a file (experiment=FILE.yaml)")  # fmt: skip
        return inner
    if override is not None and (_is_text(override) or not TEXT.fullmatch(key) or not os.path.exists(value)):
        return word
    parts = value.split(",") if several and not os.path.exists(value) else [value]
    return f"{key}={','.join(map(quoted, parts))}"


def _is_text(override: Override) -> bool:
    return not override.is_sweep_override() and isinstance(override.value(), str | None)


def _parsed(word: str) -> Override | None:
    try:
        return _parser().parse_override(word)
    except HydraException:
        return None


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()
