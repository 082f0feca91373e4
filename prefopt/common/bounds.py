"""Bounds the work that a stranger's file can ask for: regular expressions and YAML."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

YAML_BYTES = 1 << 20  # of a configuration
YAML_VALUES = 100_000  # of a configuration, its aliases written out
UNBOUNDED = 3  # repetitions one after another, without a bound; common tokenizers have 2
LONGEST = 10_000  # characters of an expression
MANY = 100  # a repetition of so many counts as one without a bound

_ESCAPE = re.compile(r"\\[\s\S]")
_OPENING = re.compile(r"\((?:\?(?:[imsx-]*[:)]|[=!>]|<[=!]|P?<\w+>))?")
_REPEAT = re.compile(r"(\*|\+|\?|\{(\d*)(,?)(\d*)\})[?+]?")


def check_yaml(file: Path) -> None:
    """Raise ValueError for YAML that is too large for a configuration, or whose aliases stand for too much."""
    if file.stat().st_size > YAML_BYTES:
        raise ValueError(f"it is larger than {YAML_BYTES >> 10} KiB")
    if _size(yaml.safe_load(file.read_text(encoding="utf-8")), {}) > YAML_VALUES:
        raise ValueError(f"its aliases stand for more than {YAML_VALUES:,} values")


def _size(value: Any, known: dict[int, int]) -> int:
    """The number of values in a value, each counted wherever it is; those within themselves count without end."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = YAML_VALUES + 1  # until it is known: an alias of itself
        parts = [*value.values(), *value] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(value)]


@dataclass
class _Group:
    """What has been read of a group: whether it can match in several ways, and its repetitions without a bound."""

    varies: bool = False
    most: int = 0  # in the alternatives that have ended
    here: int = 0  # in this alternative

    def count(self) -> int:
        return max(self.most, self.here)


def is_costly(pattern: str, *, nested: bool = True) -> bool:
    """Whether a regular expression may take exponential time, or more than the cube of a text's length.

    It may where what is repeated can itself match in several ways, as in `(a+)+`; where more than `UNBOUNDED`
    repetitions follow each other; and with references to what was matched.

    Args:
        pattern: the regular expression.
        nested: whether a class of characters can hold another one, as in tokenizers but not in Python.
    """
    if len(pattern) > LONGEST:
        return True
    groups, last, at = [_Group()], _Group(), 0
    while at < len(pattern):
        if found := _REPEAT.match(pattern, at):
            least, most = _bounds(found)
            if most > 1 and last.varies:
                return True
            groups[-1].varies |= least != most
            groups[-1].here += most > MANY
            last, at = _Group(varies=last.varies or least != most), found.end()
        elif found := _ESCAPE.match(pattern, at):
            if found[0][1] in "123456789kg":
                return True
            last, at = _Group(), found.end()
        elif pattern[at] == "[":
            last, at = _Group(), _end_of_class(pattern, at, nested)
        elif found := _OPENING.match(pattern, at):
            if not found[0].endswith(")"):  # else flags
                groups.append(_Group())
            last, at = _Group(), found.end()
        else:
            last = _literal(pattern[at], groups)
            at += 1
    return groups[0].count() > UNBOUNDED


def _literal(character: str, groups: list[_Group]) -> _Group:
    """Read a character that is no repetition, class or opening; what it ends is what a repetition would repeat."""
    group = groups[-1]
    if character == "|":
        group.most, group.here, group.varies = group.count(), 0, True
    elif character == ")" and len(groups) > 1:
        ended = groups.pop()
        groups[-1].here += ended.count()
        groups[-1].varies |= ended.varies
        return ended
    return _Group()


def _end_of_class(pattern: str, at: int, nested: bool) -> int:
    depth, start = 0, at
    first = at + 1 + pattern.startswith("^", at + 1)  # where a closing bracket is one of the characters
    while at < len(pattern):
        if pattern[at] == "\\":
            at += 1
        elif pattern[at] == "[" and (nested or at == start):
            depth += 1
        elif pattern[at] == "]" and at != first:
            depth -= 1
        at += 1
        if depth == 0:
            return at
    return start + 1  # it never ends: a bracket


def _bounds(repeat: re.Match[str]) -> tuple[int, float]:
    """How often a repetition is matched, at least and at most."""
    match repeat[1]:
        case "*":
            return 0, float("inf")
        case "+":
            return 1, float("inf")
        case "?":
            return 0, 1
    least = int(repeat[2] or 0)
    return least, least if not repeat[3] else int(repeat[4]) if repeat[4] else float("inf")
