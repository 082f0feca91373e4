"""Rewards made of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from prefopt.config.compose import compose
from prefopt.errors import UserError
from prefopt.rewards import Answer, Reward, combined

ANSWERS = [Answer(prompt=(1,), completion=(n,), prompt_text="", text="", ended=True) for n in (1, 2)]


@dataclass(frozen=True)
class Fixed:
    name: str
    scores: tuple[float, ...]

    def __call__(self, answers: Sequence[Answer], /) -> Any:
        return np.array(self.scores)


def named(name: str, centre: bool) -> Reward:
    scores = {"a": (1.0, 4.0), "b": (3.0, 2.0), "broken": (float("nan"), 0.0)}[name]
    return Fixed(name, tuple(s - 10 * centre for s in scores))


@pytest.mark.parametrize(
    ("given", "expected", "name"),
    [
        ("a", [1, 4], "a"),
        ({"mean": ["a", "b"]}, [2, 3], "mean(a, b; 0.0)"),
        ({"min": ["a", "b"]}, [1, 2], "min(a, b)"),
        ({"mean": ["a", "b"], "variance": 0.5}, [2 - 0.5 * 1, 3 - 0.5 * 1], "mean(a, b; 0.5)"),
        ({"sum": ["a", "b"]}, [4, 6], "sum(a, b; [1.0, 1.0])"),
        ({"sum": ["a", "b"], "weights": [1, -0.5]}, [-0.5, 3], "sum(a, b; [1.0, -0.5])"),
        ({"centred": "a"}, [-9, -6], "a"),
        ({"sum": [{"min": ["a", "b"]}, "a"], "weights": [2, 1]}, [3, 8], "sum(min(a, b), a; [2.0, 1.0])"),
    ],
)
def test_the_grammar(given: Any, expected: list[float], name: str) -> None:
    reward = combined(given, named)
    np.testing.assert_allclose(reward(ANSWERS), expected)
    assert reward.name == name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "is neither a name nor a table"),
        ({}, "a table has one of mean, min, sum, centred; this one has nothing"),
        ({"maen": ["a"]}, "this one has maen; did you mean 'mean'"),
        ({"mean": ["a"], "min": ["b"]}, "this one has mean, min"),
        ({"mean": []}, "give a list of rewards"),
        ({"mean": "a"}, "give a list of rewards"),
        ({"min": ["a"], "variance": 1}, "min takes nothing else, not variance"),
        ({"mean": ["a"], "weights": [1]}, "mean takes variance, not weights"),
        ({"sum": ["a", "b"], "weights": [1]}, "must be a list of 2 numbers"),
        ({"sum": ["a"], "weights": ["x"]}, "weights=x must be a number"),
        ({"mean": ["a"], "variance": float("nan")}, "variance=nan must be a number"),
        ({"centred": ["a"]}, "give the folder of one reward model"),
    ],
)
def test_what_is_not_in_the_grammar(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        combined(given, named)


def test_a_part_that_is_not_finite_is_named() -> None:
    with pytest.raises(UserError, match="reward=broken gave nan"):
        combined({"mean": ["a", "broken"]}, named)(ANSWERS)


def test_it_is_an_option_of_a_run() -> None:
    given = "reward={mean:[runs/rm0,runs/rm1],variance:0.5}"
    config = compose(["loss=rloo", "source=rollouts", given])
    assert config.reward == {"mean": ["runs/rm0", "runs/rm1"], "variance": 0.5}
    assert config.plain()["reward"] == config.reward
