"""Labels a world's samples: the rater's settings, and pairs or single texts as rows of a data file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from prefopt.errors import UserError, nearest

Split = Literal["train", "validation", "test"]
MAX_BEST_OF = 16
_World = TypeVar("_World", bound="Rater")


@dataclass(frozen=True, kw_only=True)
class Rater:
    """How the preferences of a world are labelled.

    Two completions a and b of one prompt are labelled by Bradley-Terry:
    P(a chosen) = sigmoid((r(a) - r(b) + length_bias * (tokens of a - tokens of b)) / label_temperature),
    then flipped with probability `label_flips`.
    """

    label_temperature: float = 0.5  # in units of reward; near 0 the better text is always chosen
    label_flips: float = 0.0  # share of flipped labels, 0 to 0.5
    length_bias: float = 0.0  # reward per token that the labels see and the true reward does not
    best_of: int = 1  # the second text of a pair is the best of this many samples, by exact reward
    desirable_dropped: float = 0.0  # share of chosen texts left out; above 0 the training data is unpaired
    draw: int = 0  # of the texts and labels: other data from the same models

    def __post_init__(self) -> None:
        if not self.label_temperature > 0:
            raise UserError(f"label_temperature must be above 0, got {self.label_temperature}; 1e-6 means no noise")
        if not 0 <= self.label_flips <= 0.5:
            raise UserError(f"label_flips is a share from 0 to 0.5, got {self.label_flips}")
        if not math.isfinite(self.length_bias):
            raise UserError(f"length_bias must be a number, reward per token, got {self.length_bias}")
        if not 1 <= self.best_of <= MAX_BEST_OF:
            raise UserError(f"best_of is a number of samples from 1 to {MAX_BEST_OF}, got {self.best_of}")
        if not 0 <= self.desirable_dropped < 1:
            raise UserError(f"desirable_dropped is a share from 0 to below 1, got {self.desirable_dropped}")
        if self.draw < 0:
            raise UserError(f"draw must be at least 0, got {self.draw}")

    def preference(self, reward_gap: NDArray[np.float64], token_gap: NDArray[np.int64] | int) -> NDArray[np.float64]:
        """(n,) probability that the first text is chosen, given its reward and length minus those of the second."""
        logit = (reward_gap + self.length_bias * token_gap) / self.label_temperature
        clean = 0.5 * (1.0 + np.tanh(0.5 * logit))  # the sigmoid, safe from overflow
        return np.asarray(clean * (1 - self.label_flips) + (1 - clean) * self.label_flips)

    @property
    def samples_per_prompt(self) -> int:
        """The samples that the two pairs of a prompt are made of."""
        return 2 * (1 + self.best_of)

    def generator(self, split: Split, use: str) -> np.random.Generator:
        """A generator for each use, so that worlds with other labels have the same texts."""
        return np.random.default_rng([self.draw, *f"{split} {use}".encode()])


@dataclass(frozen=True, kw_only=True)
class ScoredText:
    """A sample and its exact reward.

    Attributes:
        text: as a data file has it, without end token.
        tokens: their number, the end token included.
        reward: exact.
        ended: False for a text that was cut off.
        usable: whether a file gives it back as it was written.
    """

    text: str
    tokens: int
    reward: float
    ended: bool = True
    usable: bool = True


def pairs(rater: Rater, samples: Mapping[str, Sequence[ScoredText]], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Two labelled pairs per prompt, each of a sample and the best of `best_of` others.

    Pairs of equal reward, whose label would be random, and those with an unusable text are left out.
    """
    rows = []
    for prompt, texts in samples.items():
        for half in (texts[: len(texts) // 2], texts[len(texts) // 2 :]):
            first, *others = half
            second = max(others, key=lambda one: one.reward)
            if first.reward == second.reward or not (first.usable and second.usable):
                continue
            gap = np.array([first.reward - second.reward])
            wins = rng.random() < rater.preference(gap, first.tokens - second.tokens)[0]
            chosen, rejected = (first, second) if wins else (second, first)
            row = {"prompt": prompt, "chosen": chosen.text, "rejected": rejected.text,
                   "score_chosen": chosen.reward, "score_rejected": rejected.reward}  # fmt: skip
            if not (chosen.ended and rejected.ended):
                row["ended"] = [chosen.ended, rejected.ended]
            rows.append(row)
    return rows


def singles(rows: Sequence[Mapping[str, Any]], dropped: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Every rejected text and the chosen ones that are kept, with labels; a larger share drops the same and more."""
    kept = rng.random(len(rows)) >= dropped
    sides = (("chosen", 0), ("rejected", 1))
    return [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        | ({} if row.get("ended", [True, True])[place] else {"ended": False})
        for row, keep in zip(rows, kept, strict=True)
        for side, place in sides
        if keep or side == "rejected"
    ]


def with_knobs(world: type[_World], given: Mapping[str, Any], title: str) -> _World:
    """A world with these settings, as `data.world.label_flips=0.2` gives them.

    Raises:
        UserError: a setting that the world does not have, or a value of another type or range.
    """
    defaults = {field.name: field.default for field in fields(world)}
    for name, value in given.items():
        if name not in defaults:
            raise UserError(f"the {title} world has no knob {name!r}{nearest(name, defaults)}; its knobs: "
                            f"{', '.join(defaults)}")  # fmt: skip
        kind, allowed = _kind(defaults[name])
        if isinstance(value, bool) or not isinstance(value, allowed):
            raise UserError(f"the knob {name} of the {title} world is a {kind}, got {value!r}")
    return world(**given)


def _kind(default: Any) -> tuple[str, Any]:
    """What a knob's value is called, and the types that it may have."""
    if isinstance(default, str):
        return "path", str
    return ("whole number", int) if isinstance(default, int) else ("number", int | float)
