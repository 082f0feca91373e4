"""Worlds: tasks whose reward is known exactly, the ground of comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefopt.data.world_names import INSTRUCTIONS, REVIEWS
from prefopt.models.load import resolve as resolve_model
from prefopt.worlds import instruction_files, instructions
from prefopt.worlds.build import ReviewTask, WorldFiles, build
from prefopt.worlds.instruction_files import InstructionTask
from prefopt.worlds.instructions import InstructionWorld
from prefopt.worlds.review import ReviewWorld
from prefopt.worlds.review import knobs as review_knobs
from prefopt.worlds.task import Sampled, Task, WorldReward

World = ReviewWorld | InstructionWorld


def knobs(given: Mapping[str, Any], path: str = REVIEWS) -> World:
    """A world with these settings, as `data.world.label_flips=0.2` gives them.

    Args:
        given: the knobs that differ from the default's.
        path: the world's name.

    Raises:
        UserError: a setting that the world does not have, or a value of another type or range.
    """
    return instructions.knobs(given) if path == INSTRUCTIONS else review_knobs(given)


def resolve(world: World | Mapping[str, Any] | None = None, path: str = REVIEWS) -> WorldFiles:
    """The files of a world, built on first use: what `data.path=world` stands for.

    Args:
        world: the world, or the knobs that differ from the default's, such as {"label_flips": 0.2}.
        path: the world's name, for knobs.
    """
    found = knobs(world or {}, path) if world is None or isinstance(world, Mapping) else world
    return instruction_files.files(found) if isinstance(found, InstructionWorld) else build(found)


def model_folder(path: str, given: Mapping[str, Any] | None = None) -> str:
    """The folder of a world's model.

    Args:
        path: one of `MODELS`.
        given: knobs of this world, some of which choose its model.
    """
    if path == INSTRUCTIONS:
        return resolve_model(instructions.knobs(given or {}).model)
    found = resolve(given)
    return str(found.model if path == REVIEWS else found.base)


def task_of(world: World) -> Task:
    """The prompts, texts and rewards of a world."""
    return InstructionTask(world) if isinstance(world, InstructionWorld) else ReviewTask(world)


__all__ = [
    "INSTRUCTIONS", "MODELS", "REVIEWS", "InstructionWorld", "ReviewWorld", "Sampled", "Task", "World", "WorldFiles",
    "WorldReward", "knobs", "model_folder", "resolve", "task_of",
]  # fmt: skip
