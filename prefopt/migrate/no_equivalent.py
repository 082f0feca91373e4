"""What options of other trainers that prefopt does not have would have done, from `no_equivalent.yaml`."""

from __future__ import annotations

from fnmatch import fnmatchcase
from importlib.resources import files
from typing import Any

import yaml

_KNOWN: dict[str, Any] = yaml.safe_load((files(__package__) / "no_equivalent.yaml").read_text())
_OFF: dict[str, str | None] = _KNOWN["turned_off"]


def asks(name: str, value: Any) -> bool:
    """Whether a value of an option asks for anything: is not off, or is off where the program has it on."""
    if isinstance(value, bool) and name in _OFF:
        return not value or _OFF[name] == ""
    return value not in (None, False, "", "no", "none", [], {})


def has_no_effect(name: str, value: Any) -> bool:
    """Whether a value of an option changes no result here."""
    if value is False and _OFF.get(name) is not None:
        return not _OFF[name]
    return any(fnmatchcase(name, pattern) for pattern in _KNOWN["no_effect"])


def would_do(name: str, value: Any) -> str | None:
    """What a value of an option would have done in its own program, or None if it is not known."""
    if value is False and _OFF.get(name):
        return _OFF[name]
    return next((text for pattern, text in _KNOWN["would"].items() if fnmatchcase(name, pattern)), None)
