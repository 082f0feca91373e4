"""Defines what measurement and training on samples read of a world: prompts, texts and exact rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from prefopt.rewards.reward import Answer
from prefopt.worlds.rater import Split


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """How a world's texts are sampled, at temperature 1.

    Attributes:
        max_new_tokens: a longer text is cut off.
        ends: tokens that end a text.
        batch_size: texts of one batch.
        max_tokens: tokens of one forward where texts are scored.
    """

    max_new_tokens: int
    ends: tuple[int, ...]
    batch_size: int
    max_tokens: int


class Task(Protocol):
    """A world's prompts, texts and rewards."""

    @property
    def sampling(self) -> Sampled: ...

    def size(self, split: Split) -> int:
        """The prompts of a split."""
        ...

    def prompts(self, n: int, seed: int, split: Split) -> list[list[int]]:
        """`n` different prompts of a split in tokens; the splits share none."""
        ...

    def answers(self, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> list[Answer]:
        """Texts behind prompts, decoded."""
        ...

    def text(self, answer: Answer) -> str:
        """The words of an answer, without end token."""
        ...

    def reward(self, answers: Sequence[Answer]) -> NDArray[np.float64]:
        """(n,) exact rewards."""
        ...

    def valid(self, answers: Sequence[Answer]) -> NDArray[np.bool_]:
        """(n,) whether each text has the form that the world asks for."""
        ...


@dataclass(frozen=True)
class WorldReward:
    """The exact reward of a world's texts, for training on samples."""

    task: Task
    name: str = "world"

    def __call__(self, answers: Sequence[Answer], /) -> NDArray[np.float64]:
        """(n,) rewards."""
        return self.task.reward(answers)
