"""Worlds: tasks whose reward is known exactly, the ground of comparisons. `resolve()` is the embedded default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefopt.worlds.build import WorldFiles
    from prefopt.worlds.review import ReviewWorld


def resolve(world: ReviewWorld | Mapping[str, Any] | None = None) -> WorldFiles:
    """The files of the review world, built on first use: what `model.path=world` and `data.path=world` stand for.

    Args:
        world: the world, or the knobs that differ from the default's, such as {"label_flips": 0.2}.
    """
    from prefopt.worlds.build import build
    from prefopt.worlds.review import ReviewWorld

    return build(world if isinstance(world, ReviewWorld) else knobs(world or {}))


def knobs(given: Mapping[str, Any]) -> ReviewWorld:
    """The review world with these knobs, as `data.world.label_flips=0.2` gives them.

    Raises:
        UserError: a knob that the world does not have, or a value that cannot be.
    """
    import dataclasses

    from prefopt.errors import UserError, nearest
    from prefopt.worlds.review import ReviewWorld

    defaults = {field.name: field.default for field in dataclasses.fields(ReviewWorld)}
    for name, value in given.items():
        if name not in defaults:
            raise UserError(
                f"the review world has no knob {name!r}{nearest(name, defaults)}; its knobs: {', '.join(defaults)}"
            )
        whole = isinstance(defaults[name], int)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise UserError(
                f"the knob {name} of the review world is a {'whole ' if whole else ''}number, got {value!r}"
            )
    return ReviewWorld(**given)
