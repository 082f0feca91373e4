"""What options of other trainers that prefopt does not have would have done, from `no_equivalent.yaml`."""

from __future__ import annotations

from fnmatch import fnmatchcase
from importlib.resources import files
from typing import Any

import yaml

_KNOWN: dict[str, Any] = yaml.safe_load((files(__package__) / "no_equivalent.yaml").read_text())


def asks(name: str, value: Any) -> bool:
    """Whether a value of an option asks for anything."""
    return name in _KNOWN["asked_by_false"] if value is False else value not in (None, "", "no", "none", [], {})


def has_no_effect(name: str) -> bool:
    """Whether an option changes no result here."""
    return any(fnmatchcase(name, pattern) for pattern in _KNOWN["no_effect"])


def would_do(name: str) -> str | None:
    """What an option would have done in its own program, or None if it is not known."""
    return next((text for pattern, text in _KNOWN["would"].items() if fnmatchcase(name, pattern)), None)
