"""Worlds: tasks whose reward is known exactly, the ground of comparisons."""
