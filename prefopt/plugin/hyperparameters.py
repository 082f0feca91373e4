"""Checks the hyper-parameters of a loss, and reads the comments that state their units and ranges."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from typing import Any


def require(loss: Any, /, **holds: bool) -> None:
    """Check conditions on hyper-parameters, false for NaN: `require(self, beta=0 < self.beta < inf)`.

    Raises:
        ValueError: a condition is false; the message has the value and the field's comment (unit, useful range).
    """
    for name, ok in holds.items():
        if not ok:
            about = comments(type(loss)).get(name, "see its documentation")
            raise ValueError(f"{name}={getattr(loss, name)!r} is not possible; {name}: {about}")


def comments(cls: type[Any]) -> dict[str, str]:
    """Return the comment of each dataclass field of `cls`, own and inherited, by field name."""
    bases = filter(dataclasses.is_dataclass, reversed(cls.__mro__))
    return {name: text for base in bases for name, text in _own_comments(base).items()}


def _own_comments(cls: type[Any]) -> dict[str, str]:
    try:
        lines = textwrap.dedent(inspect.getsource(cls)).encode().splitlines()
    except (OSError, TypeError):  # a class without a source file, as in a notebook
        return {}
    body = ast.parse(b"\n".join(lines)).body[0]
    assert isinstance(body, ast.ClassDef)
    fields = [s for s in body.body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)]
    behind = {s.target.id: lines[s.end_lineno - 1][s.end_col_offset :].decode() for s in fields}  # type: ignore
    return {name: text.strip().lstrip("# ") for name, text in behind.items() if text.strip().startswith("#")}
