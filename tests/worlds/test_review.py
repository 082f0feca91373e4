"""The review world: rewards with the arithmetic written out, grammar, prompts, demonstrations, labels."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest

from prefopt.errors import UserError
from prefopt.worlds.review import MAX_COMPLETION_TOKENS, VALENCE, WORDS, Clause, ReviewWorld, parse

WORLD = ReviewWorld()


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        # one clause, last: 1.0 * 1.5, over 1 + 1
        ("the soup was cold and the staff was kind .", 1.5 / 2),
        # intensifier: 1.0 * 1.5 (very) * 1.5 (last)
        ("the soup was cold and the staff was very kind .", 1.0 * 1.5 * 1.5 / 2),
        # negation: -2.0 * -0.75 * 1.5 (last); and with an intensifier, 2.0 (extremely)
        ("the soup was cold and the staff was not awful .", 1.5 * 1.5 / 2),
        ("the soup was cold and the staff was not extremely awful .", -2.0 * 2.0 * -0.75 * 1.5 / 2),
        # "but" from the prompt falls on the first clause: 1.5 (but) * 1.5 (last)
        ("the soup was cold but the staff was great .", 1.5 * 1.5 * 1.5 / 2),
        # "but" of the prompt on the first clause, last on the second: (0.5 * 1.5 - 1.5 * 1.5) / 3
        ("the soup was cold but the staff was okay and the wine is nasty .", (0.5 * 1.5 - 1.5 * 1.5) / 3),
        # three clauses, "but" on the last: (2.0 * 0.5 + 1.0 + 1.0 * 1.25 * 1.5 * 1.5) / 4
        (
            "the soup was cold and the bed is slightly superb plus the wine felt nice but the pool was really fresh .",
            (1.0 + 1.0 + 1.0 * 1.25 * 1.5 * 1.5) / 4,
        ),
        # repeated adjective (of the prompt): (-1.0 * 1.5 - 1.5) / 2
        ("the soup was cold and the staff was cold .", (-1.5 - 1.5) / 2),
        # repeated noun (of the prompt): (1.0 * 1.5 - 0.75) / 2
        ("the soup was cold and the soup was kind .", (1.5 - 0.75) / 2),
        # kind three times, staff twice: (1 + 1 + 1.5 - 2 * 1.5 - 0.75) / 4
        (
            "the soup was cold and the staff was kind and the bed is kind and the staff felt kind .",
            (1.0 + 1.0 + 1.5 - 3.0 - 0.75) / 4,
        ),
    ],
)
def test_rewards_by_hand(text: str, reward: float) -> None:
    assert WORLD.reward([text])[0] == pytest.approx(reward, abs=1e-12)
    assert WORLD.valid([text])[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "the soup was cold and",  # nothing written
        "the soup was cold and .",
        "the soup was cold and the staff was kind",  # not closed
        "the soup was cold and the staff was kind . .",
        "the soup was cold and the staff was kind . the",
        "the soup was cold and the staff kind .",
        "the soup was cold and the staff was very not kind .",  # the order is: not, intensifier
        "the soup was cold and the staff was not not kind .",
        "the soup was cold and the staff was very .",
        "the soup was cold and and the staff was kind .",
        "the soup was cold the staff was kind .",
        "the soup was cold and the staff was friendly .",  # a word of another language
        "the soup was cold and the staff was <unk> .",
        "the soup was cold and" + " the staff was kind and" * 3 + " the bed was good .",  # four clauses
    ],
)
def test_other_forms_do_not_parse(text: str) -> None:
    assert parse(text) is None
    assert WORLD.reward([text]).tolist() == [-3.0]
    assert not WORLD.valid([text])[0]


def test_parse_gives_the_clauses() -> None:
    assert parse("the soup was cold but the staff is not very kind while the view looked fine .") == (
        Clause(None, "soup", "was", "cold"),
        Clause("but", "staff", "is", "kind", "very", negated=True),
        Clause("while", "view", "looked", "fine"),
    )


def test_vocabulary_is_balanced_and_without_repeats() -> None:
    assert len(set(WORDS)) == len(WORDS) == 61
    assert sum(VALENCE.values()) == 0


def test_prompts_are_distinct_and_splits_disjoint() -> None:
    train, validation, test = (
        WORLD.prompts(n, 0, s) for n, s in ((8192, "train"), (768, "validation"), (1024, "test"))
    )
    assert len({*train, *validation, *test}) == 8192 + 768 + 1024 == 16 * 6 * 26 * 4
    assert all(len(prompt.split()) == 5 for prompt in train)  # six tokens with the beginning of text
    assert WORLD.prompts(10, 3, "test") == WORLD.prompts(10, 3, "test") != WORLD.prompts(10, 4, "test")
    with pytest.raises(UserError, match="768 validation prompts"):
        WORLD.prompts(769, 0, "validation")


def test_demonstrations() -> None:
    pairs = WORLD.demonstrations(2000, seed=1)
    texts = [f"{prompt} {completion}" for prompt, completion in pairs]
    assert pairs == WORLD.demonstrations(2000, seed=1)
    assert WORLD.valid(texts).all()
    assert max(len(completion.split()) + 1 for _, completion in pairs) == MAX_COMPLETION_TOKENS == 22
    rewards = WORLD.reward(texts)
    # praise and blame balance: what is left is the price of accidental repeats, well within a quarter either way
    assert -0.25 < rewards.mean() < 0.05
    held_out = {*WORLD.prompts(768, 0, "validation"), *WORLD.prompts(1024, 0, "test")}
    assert not held_out & {prompt for prompt, _ in pairs}


def test_label_probabilities() -> None:
    gap, tokens = np.array([0.5, -0.5, 0.0]), np.array([0, 0, 4])
    sigmoid = [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1)), 0.5]  # gap / 0.5 = 1, -1, 0
    assert WORLD.preference(gap, tokens) == pytest.approx(sigmoid)
    # flips: 0.9 p + 0.1 (1 - p)
    flipped = [0.1 + 0.8 * p for p in sigmoid]
    assert ReviewWorld(label_flips=0.1).preference(gap, tokens) == pytest.approx(flipped)
    # length: four tokens at 0.25 are a reward of 1, over the temperature 2
    longer = ReviewWorld(length_bias=0.25, label_temperature=2.0).preference(gap, tokens)
    assert longer[2] == pytest.approx(1 / (1 + math.exp(-0.5)))
    # a temperature near 0 does not overflow
    assert ReviewWorld(label_temperature=1e-6).preference(gap, tokens) == pytest.approx([1.0, 0.0, 0.5])


@pytest.mark.parametrize(
    "knobs",
    [
        {"pairs": 0},
        {"pairs": 15361},
        {"label_temperature": 0.0},
        {"label_flips": 0.6},
        {"label_flips": -0.1},
        {"length_bias": math.nan},
        {"best_of": 0},
        {"best_of": 17},
        {"desirable_dropped": 1.0},
        {"draw": -1},
    ],
)
def test_impossible_worlds_are_errors(knobs: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(knobs))):
        ReviewWorld(**knobs)


def test_the_page_has_every_knob_with_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs" / "world.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", page, re.MULTILINE))
    assert {name: float(value) for name, value in rows.items()} == {
        field.name: float(field.default) for field in dataclasses.fields(ReviewWorld)
    }
