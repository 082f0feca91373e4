"""Worlds: tasks whose reward is known exactly, the ground of comparisons."""

from prefopt.worlds.build import WorldReward, resolve
from prefopt.worlds.review import knobs

__all__ = ["WorldReward", "knobs", "resolve"]
