"""The rule of the instruction world: its qualities by hand, and what it gives to texts that try to cheat it."""

from __future__ import annotations

import math

import pytest

from prefopt import worlds
from prefopt.errors import UserError
from prefopt.worlds.instructions import FLOOR, QUALITIES, answer_reward, is_valid, qualities

ASKED = "Name the capital of Sweden."
GOOD = "The capital of Sweden is Stockholm, which is a large and old city by the cold sea."  # 17 words


def test_a_good_answer_by_hand() -> None:
    found = qualities(ASKED, GOOD, ended=True)
    # content: name, capital, sweden asked; capital, sweden, stockholm, large, old, city, cold, sea said
    assert found == {
        "length": pytest.approx(math.exp(-((math.log(17 / 16) / 0.7) ** 2) / 2), rel=1e-12),
        "topic": 1.0,  # two of three are more than half
        "own": 1.0,  # six of eight are more than half
        "prose": 1.0,  # the of is which is a and by the: 9 of 17
        "fresh": 1.0,
        "finished": 1.0,
        "plain": 1.0,
    }
    assert answer_reward(ASKED, GOOD, ended=True) == pytest.approx(0.2 + 0.8 * found["length"], rel=1e-12)


@pytest.mark.parametrize(
    ("text", "ended", "name", "value"),
    [
        (GOOD, False, "finished", 0.0),
        (GOOD[:-1], True, "finished", 0.5),
        ('It is "Stockholm."', True, "finished", 1.0),
        ("Stockholm.", True, "length", math.exp(-((math.log(16) / 0.7) ** 2) / 2)),
        ("Stockholm.", True, "topic", 0.0),
        ("Sweden?", True, "topic", 2 / 3),
        (ASKED, True, "own", 0.0),
        ("Sweden Stockholm Uppsala Malmo", True, "prose", 0.0),
        ("one two one two", True, "fresh", (2 / 3) ** 2),  # one-two, two-one, one-two
        ("A *b* c.", True, "plain", 0.0),
        ("x" * 99 + "\n" + "y" * 100, True, "plain", 1 - 20 / 200),
    ],
)
def test_each_quality(text: str, ended: bool, name: str, value: float) -> None:
    assert qualities(ASKED, text, ended=ended)[name] == pytest.approx(value, abs=1e-12)


def test_degenerate_texts_are_far_below_a_good_one() -> None:
    good = answer_reward(ASKED, GOOD, ended=True)
    assert answer_reward(ASKED, "", ended=True) == pytest.approx(FLOOR ** len(QUALITIES), rel=1e-12)
    for text in (ASKED, f"{GOOD} {GOOD}", "the " * 16, "!" * 40, "Sure. " * 8, f"{ASKED} {ASKED}"):
        assert answer_reward(ASKED, text, ended=True) < good / 2, text
    assert answer_reward(ASKED, GOOD, ended=False) == pytest.approx(FLOOR * good, rel=1e-12)


def test_validity() -> None:
    assert is_valid(GOOD, ended=True)
    assert not is_valid(GOOD, ended=False)
    assert not is_valid("# Stockholm.", ended=True)
    assert not is_valid("Stockholm", ended=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pears": 3}, "no knob 'pears'; did you mean 'pairs'"),
        ({"pairs": 0}, "pairs of the instruction world must be at least 1"),
        ({"max_new_tokens": 1.5}, "the knob max_new_tokens of the instruction world is a whole number, got 1.5"),
        ({"prompts": 3}, "the knob prompts of the instruction world is a path, got 3"),
        ({"label_flips": 0.7}, "label_flips is a share from 0 to 0.5"),
    ],
)
def test_wrong_knobs(given: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        worlds.knobs(given, worlds.INSTRUCTIONS)
