"""Finds what installed packages register by entry points: losses, schemas, rewards.

An entry point is a line of another package's `pyproject.toml`, under `[project.entry-points."prefopt.losses"]`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from prefopt.errors import UserError

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def registered(group: str, what: str, taken: Collection[str]) -> dict[str, EntryPoint]:
    """The entry points of a group by their names, nothing loaded yet.

    Args:
        group: such as `prefopt.losses`.
        what: what they are, for messages: "loss".
        taken: names that prefopt has itself.

    Raises:
        UserError: a name that is none, is taken, or that two packages register.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        if not NAME.fullmatch(point.name):  # it becomes part of folder names
            raise UserError(
                f"package {package(point)} registers a {what} {point.name!r}: a name has letters, digits and _, and "
                "begins with a letter; uninstall it"
            )
        if point.name in taken:
            raise UserError(
                f"package {package(point)} registers a {what} {point.name!r}, which prefopt already has; "
                "it must choose another name, or be uninstalled"
            )
        if point.name in found:
            raise UserError(
                f"packages {package(found[point.name])} and {package(point)} both register a {what} "
                f"{point.name!r}; uninstall one of them"
            )
        found[point.name] = point
    return found


def loaded(point: EntryPoint, where: str) -> Any:
    """What an entry point names; `where` is `described(point, what)`.

    Raises:
        UserError: its package cannot be imported.
    """
    try:
        return point.load()
    except (Exception, SystemExit) as error:
        raise UserError(f"{where} failed to import: {type(error).__name__}: {error}") from error


def described(point: EntryPoint, what: str) -> str:
    """An entry point in a message: "loss 'mypo' of package prefopt-mypo"."""
    return f"{what} {point.name!r} of package {package(point)}"


def package(point: EntryPoint) -> str:
    """The name of the distribution that an entry point comes from."""
    return point.dist.name if point.dist is not None else point.value
