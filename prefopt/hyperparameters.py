"""Hyper-parameters of plugins: what their field lines say, and refusal of values that cannot be.

A field's unit and useful range are written once, as the comment on its line; messages and pages read them from there.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
from typing import Any


def require(loss: Any, /, **holds: bool) -> None:
    """Refuse hyper-parameters for which a condition does not hold: `require(self, beta=0 < self.beta < inf)`.

    Write conditions that are false for NaN.

    Raises:
        ValueError: with the value, and the comment of the field (its unit and useful range).
    """
    for name, ok in holds.items():
        if not ok:
            about = comments(type(loss)).get(name, "see its documentation")
            raise ValueError(f"{name}={getattr(loss, name)!r} is not possible; {name}: {about}")


def comments(cls: type[Any]) -> dict[str, str]:
    """The comment of each dataclass field of `cls` (own and inherited), by field name."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _own_comments(base)
    return found


def _own_comments(cls: type[Any]) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # a class without a source file, as in a notebook
        return {}
    by_line = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        statement.target.id: by_line[line]
        for statement in body.body
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and (line := statement.end_lineno or statement.lineno) in by_line
    }
