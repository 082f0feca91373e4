"""Declares which values an option may have, beside the option, so that they are checked before torch is loaded.

A class of options has `LIMITS: ClassVar[Limits]`, by the names of its fields. The type of a field, not its limit, says
whether it may be None.
"""

from __future__ import annotations

import ast
import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Protocol

from prefopt.errors import UserError, nearest


class OptionLimit(Protocol):
    """What values an option may have."""

    def check(self, option: str, value: Any) -> None:
        """Raise UserError with the option, its value and what it may be."""


Limits = Mapping[str, OptionLimit]


@dataclass(frozen=True)
class Range:
    """Finite numbers between two bounds.

    Attributes:
        least: the lower bound, itself in the range unless `above`.
        below: the upper bound, itself outside the range.
        otherwise: what else can be given, for the message.
    """

    least: float
    above: bool = False
    below: float = math.inf
    otherwise: str = ""

    def check(self, option: str, value: Any) -> None:
        """Raise UserError for a number outside the range, NaN among them."""
        if (self.least < value or (self.least == value and not self.above)) and value < self.below:
            return
        text = f"must be {'above' if self.above else 'at least'} {self.least:g}"
        if self.below < math.inf:
            text += f" and below {self.below:g}"
        elif not math.isfinite(value):
            text += " and finite"
        raise UserError(f"{option}={value} {text}{self.otherwise and f', or {self.otherwise}'}")


def at_least(least: float, *, below: float = math.inf, otherwise: str = "") -> Range:
    """Finite numbers of at least `least`."""
    return Range(least, below=below, otherwise=otherwise)


def above(bound: float, *, otherwise: str = "") -> Range:
    """Finite numbers above a bound."""
    return Range(bound, above=True, otherwise=otherwise)


@dataclass(frozen=True)
class OneOf:
    """Some names.

    Attributes:
        otherwise: what else can be given, for the message.
    """

    names: tuple[str, ...]
    otherwise: str = ""

    def check(self, option: str, value: Any) -> None:
        """Raise UserError for another name, with the nearest."""
        if str(value) not in self.names:
            known = ", ".join(self.names) + (self.otherwise and f", or {self.otherwise}")
            raise UserError(f"{option}={value} is not one of {known}{nearest(str(value), self.names)}")


def one_of(*names: str, otherwise: str = "") -> OneOf:
    """These names."""
    return OneOf(names, otherwise)


@dataclass(frozen=True)
class OneOfEnum:
    """The values of an enum of the installed transformers, read from its source: to import it takes seconds.

    Attributes:
        place: `file.py:Class`.
    """

    place: str
    package: ClassVar[str] = "transformers"

    def check(self, option: str, value: Any) -> None:
        """Raise UserError for another value; pass where the source has no such class."""
        if (names := _enum_values(self.package, self.place)) and str(getattr(value, "value", value)) not in names:
            OneOf(names).check(option, value)


@cache
def _enum_values(package: str, place: str) -> tuple[str, ...]:
    file, _, name = place.partition(":")
    found = importlib.util.find_spec(package)
    source = Path(str(found.origin)).parent / file if found is not None else Path(file)
    if not source.is_file():
        return ()
    classes = (node for node in ast.parse(source.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef))
    assigned = (
        part.value for node in classes if node.name == name for part in node.body if isinstance(part, ast.Assign)
    )
    return tuple(str(value.value) for value in assigned if isinstance(value, ast.Constant))


def check_limits(limits: Limits, values: Any, group: str = "") -> None:
    """Check values against limits.

    Args:
        limits: by name.
        values: an object with attributes of these names, or a mapping.
        group: of the options.

    Raises:
        UserError: the first value that is outside, by its full name.
    """
    for name, limit in limits.items():
        value = values.get(name) if isinstance(values, Mapping) else getattr(values, name)
        if value is not None:
            limit.check(f"{group}.{name}" if group else name, value)
