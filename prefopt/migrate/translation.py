"""A translation in the making: what was given, what became of it, and what could not be kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

COMPAT = Path("experiment") / "compat"  # presets whose second comment says where the formula differs


@dataclass
class Translation:
    """Settings of another program, in ours.

    Attributes:
        source: the program and class, in its own words.
        given: what it was told, by its own names; keys are taken out as they are understood.
        groups: our groups, `loss` among them, and the choice in each.
        settings: our options by dotted name.
        no_equal: their option -> why it has none here.
        differs: where the same setting does not mean the same.
    """

    source: str
    given: dict[str, Any]
    groups: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    no_equal: dict[str, str] = field(default_factory=dict)
    differs: list[str] = field(default_factory=list)

    def take(self, name: str, default: Any = None) -> Any:
        """The value of one of their options, now understood; `default` where it was not given."""
        value = self.given.pop(name, None)
        return default if value is None else value

    def put(self, **values: Any) -> None:
        """Set our options; `__` stands for a dot, and None leaves one out."""
        self.settings |= {name.replace("__", "."): value for name, value in values.items() if value is not None}

    def leave(self, name: str, why: str) -> None:
        """One of their options, if it was given, has no equal here."""
        if self.given.pop(name, None) not in (None, False):
            self.no_equal[name] = why

    def lose(self, name: str, preset: str | None = None, /, **settings: Any) -> None:
        """Choose the loss `name` with its settings; what `preset` says of the difference is said here."""
        self.groups["loss"] = name
        self.put(**{f"loss__{key}": value for key, value in settings.items()})
        said = difference(preset) if preset else None
        if said:
            self.differs.append(said)

    @property
    def overrides(self) -> list[str]:
        """For the command line of `prefopt train`."""
        return [
            *(f"{group}={choice}" for group, choice in self.groups.items()),
            *(f"{name}={_value(value)}" for name, value in self.settings.items()),
        ]

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "source": self.source,
            "overrides": self.overrides,
            "no_equal": self.no_equal,
            "differs": self.differs,
        }

    def yaml(self) -> str:
        """An experiment: `prefopt train experiment=FILE.yaml`."""
        nested: dict[str, Any] = {}
        for name, value in self.settings.items():
            *groups, key = name.split(".")
            node = nested
            for group in groups:
                node = node.setdefault(group, {})
            node[key] = value
        comments = [f"From {self.source}, by `prefopt import`."]
        comments += [f"No equal here: {name}: {why}." for name, why in self.no_equal.items()]
        comments += [f"Differs: {text}" for text in self.differs]
        head = "".join(f"# {' '.join(line.split())}\n" for line in comments)
        defaults = "".join(f"  - override /{group}: {choice}\n" for group, choice in self.groups.items())
        body = yaml.safe_dump(nested, sort_keys=False, allow_unicode=True, width=120) if nested else ""
        return f"# @package _global_\n{head}defaults:\n{defaults}\n{body}"


def difference(preset: str) -> str | None:
    """What a preset of `conf/experiment/compat` says of its difference, or None where the loss is the same."""
    from importlib.resources import files

    text = (files("prefopt.conf") / str(COMPAT) / f"{preset}.yaml").read_text()
    comments = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
    said = comments[2] if len(comments) > 2 else ""
    return None if said in ("", "The same.") else f"{comments[1]}: {said}"


def _value(value: Any) -> str:
    """A value in the grammar of overrides."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_value, value)) + "]"
    text = str(value)
    if isinstance(value, str) and not re.fullmatch(r"[\w./@-]+", text):
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return text
