"""Finds losses by name: the built-in menu, and entry points (group `prefopt.losses`) of installed packages."""

from __future__ import annotations

import dataclasses
from functools import cache
from importlib.metadata import EntryPoint
from typing import Any

from prefopt.errors import UserError, nearest
from prefopt.losses import MENU, load_class
from prefopt.plugin import Loss, Needs
from prefopt.plugin.outside import described, loaded, package, registered

ENTRY_POINT_GROUP = "prefopt.losses"


def names() -> list[str]:
    """List every known loss, built-in ones first, each group in alphabetical order."""
    return sorted(MENU) + sorted(_outside())


def loss_class(name: str) -> type[Any]:
    """Return the plugin class of a name.

    Raises:
        UserError: an unknown name (with the nearest ones), or an outside package whose plugin cannot be used.
    """
    if name in MENU:
        return load_class(name)  # type: ignore[no-any-return]
    outside = _outside()
    if name not in outside:
        raise UserError(f"unknown loss {name!r}{nearest(name, names())}; `prefopt losses` prints the menu")
    return _load_outside(outside[name])


def load(name: str, /, **hyperparameters: Any) -> Loss:
    """Instantiate the loss `name`: `load("simpo", beta=2.5)`.

    Raises:
        UserError: an unknown name or hyper-parameter, or a value that the plugin refuses.
    """
    cls = loss_class(name)
    known = [f.name for f in dataclasses.fields(cls)]
    for key in hyperparameters:
        if key not in known:
            raise UserError(f"loss {name!r} has no hyper-parameter {key!r}{nearest(key, known)}; it has: {known}")
    try:
        return cls(**hyperparameters)  # type: ignore[no-any-return]
    except Exception as error:  # other packages' plugins may raise anything
        kind = "" if isinstance(error, TypeError | ValueError | ArithmeticError) else f"{type(error).__name__}: "
        raise UserError(f"loss {name!r}: {kind}{error}") from error


@cache
def _outside() -> dict[str, EntryPoint]:
    return registered(ENTRY_POINT_GROUP, "loss", MENU)


def _load_outside(point: EntryPoint) -> type[Any]:
    where = described(point, "loss")
    cls = loaded(point, where)
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        got = cls.__name__ if isinstance(cls, type) else f"an instance of {type(cls).__name__}"
        raise UserError(f"{where} must be a dataclass, got {got}")
    if not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise UserError(f"{where} must be a frozen dataclass: its hyper-parameters are what a run is known by")
    if not isinstance(getattr(cls, "needs", None), Needs | property):
        raise UserError(f"{where} does not declare `needs: ClassVar[Needs]`")
    return cls


def package_of(name: str) -> str:
    """The distribution that a loss comes from: `prefopt` for those of the menu."""
    return "prefopt" if name in MENU else package(_outside()[name])
