"""Worlds: tasks whose reward is known exactly, the ground of comparisons. `resolve()` is the embedded default."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefopt.worlds.build import WorldFiles
    from prefopt.worlds.review import ReviewWorld


def resolve(world: ReviewWorld | None = None) -> WorldFiles:
    """The files of the review world, built on first use: what `model.path=world` and `data.path=world` stand for."""
    from prefopt.worlds.build import build
    from prefopt.worlds.review import ReviewWorld

    return build(ReviewWorld() if world is None else world)
