"""Checks the values that a command line gives, each for itself, before torch is loaded.

What options must be together is checked when the configuration is composed.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import cache
from importlib import import_module
from typing import Any

from prefopt.common.option_limits import Limits, OneOf
from prefopt.config.options import CLASSES, OVERRIDE
from prefopt.errors import UserError

KINDS: Mapping[type, str] = {float: "a number", int: "a whole number", bool: "true or false"}
OF_A_RUN = {**CLASSES, "": "config/run_config.py:RunConfig"}
OF_COMPARE = {"": "compare/spec.py:Comparison", "budget": "compare/spec.py:Budget",
              "measure": "compare/spec.py:MeasureConfig"}  # fmt: skip
OUTSIDE_GROUPS = ("source", "rounds", "progress", "seed", "seeds")  # options in no group that have limits
PLAIN = re.compile(r"[\w.+-]+")  # no list, interpolation, function or quoted text
BOOLEANS = ("true", "false", "yes", "no", "y", "n", "on", "off")  # as OmegaConf reads them; numbers, too
PREFIX = re.compile(r"(?:stages|methods)\.[\w+@-]+\.")  # of an option of one stage or method


def check_values(words: Iterable[str], classes: Mapping[str, str] = OF_A_RUN) -> None:
    """Check the type and the range of each plain value.

    Args:
        words: of the command line; those that are no KEY=VALUE are passed over.
        classes: where the options of each group are declared; options in no group under an empty name.

    Raises:
        UserError: a value that its option cannot have, with what it can be.
    """
    for word in words:
        if not (found := OVERRIDE.fullmatch(PREFIX.sub("", word.lstrip("+"), count=1))):
            continue
        group, _, name = found[1].rpartition(".")
        if group in classes and (group or name in OUTSIDE_GROUPS):
            hints, limits = _declared(classes[group])
            for text in found[2].split(","):  # of a sweep
                if name in hints and PLAIN.fullmatch(text) and text != "null":
                    _check(found[1], text, hints[name], limits.get(name))


@cache
def _declared(place: str) -> tuple[dict[str, Any], Limits]:
    """The types of a class's fields, and their limits."""
    file, _, name = place.partition(":")
    cls = getattr(import_module(f"prefopt.{file.removesuffix('.py').replace('/', '.')}"), name)
    return typing.get_type_hints(cls), getattr(cls, "LIMITS", {})


def _check(option: str, text: str, kind: Any, limit: Any) -> None:
    if isinstance(kind, types.UnionType):
        kinds = [one for one in kind.__args__ if one is not type(None)]
        kind = kinds[0] if len(kinds) == 1 else None
    if isinstance(kind, type) and issubclass(kind, Enum):
        OneOf(tuple(kind.__members__)).check(option, text.rpartition(".")[2])
    elif kind in KINDS:
        value = _value(option, text, kind)
        if limit is not None and kind is not bool:
            limit.check(option, value)
    elif limit is not None and kind is str:
        limit.check(option, text)


def _value(option: str, text: str, kind: type) -> Any:
    if kind is bool and (text.lower() in BOOLEANS or text.lstrip("+-").isdigit()):
        return None
    try:
        if kind is not bool:
            return kind(text)
    except ValueError:
        pass
    raise wrong_kind(option, text, KINDS[kind])


def wrong_kind(option: str, text: str, kind: str) -> UserError:
    """The error for a value of another type than its option's."""
    return UserError(f"{option} is {kind}, not {text!r}" if text else f"{option}= has no value: give {kind}")
