"""Defines the review world: short reviews whose reward is exact arithmetic on their words.

A prompt is one clause of fixed form and a connective, `the N V ADJ CON`. The completion has one to three clauses
`the N V [not] [INT] ADJ`, joined by connectives and ended by a full stop:

    the soup was cold but | the staff was really kind while the view was not dull .

    reward = (sum of clause values - 1.5 * repeated adjectives - 0.75 * repeated nouns) / (clauses + 1)
    clause value = valence * intensity * (-0.75 if negated) * (1.5 after "but") * (1.5 if it is the last)

Clauses are those of the completion; a word is repeated if it occurs earlier in the text, prompt included.
A text of any other form has reward -3. The prompt's clause earns nothing, because the model cannot change it.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.errors import UserError
from prefopt.worlds.rater import Rater, Split, with_knobs

NOUNS = (
    "bed", "bread", "coffee", "food", "garden", "menu", "music", "pool",
    "price", "room", "service", "soup", "staff", "table", "view", "wine",
)  # fmt: skip
VERBS = ("felt", "is", "looked", "remained", "seemed", "was")
CONNECTIVES = ("and", "but", "plus", "while")
INTENSITY: Mapping[str, float] = {
    "slightly": 0.5, "fairly": 0.75, "quite": 1.0, "really": 1.25, "very": 1.5, "extremely": 2.0,
}  # fmt: skip
VALENCE: Mapping[str, float] = {
    "superb": 2.0, "perfect": 2.0, "wonderful": 2.0, "awful": -2.0, "horrible": -2.0, "terrible": -2.0,
    "excellent": 1.5, "great": 1.5, "lovely": 1.5, "bad": -1.5, "dirty": -1.5, "nasty": -1.5,
    "fresh": 1.0, "good": 1.0, "kind": 1.0, "nice": 1.0, "cold": -1.0, "dull": -1.0, "poor": -1.0, "stale": -1.0,
    "decent": 0.5, "fine": 0.5, "okay": 0.5, "bland": -0.5, "dated": -0.5, "plain": -0.5,
}  # fmt: skip
_GOOD = tuple(word for word, valence in VALENCE.items() if valence > 0)
_BAD = tuple(word for word, valence in VALENCE.items() if valence < 0)
WORDS = ("the", "not", ".", *CONNECTIVES, *VERBS, *INTENSITY, *NOUNS, *VALENCE)

NEGATION = -0.75  # "not awful" is good, but less good than "awful" is bad
EMPHASIS = 1.5  # of a clause after "but", and of the last clause
REPEATED_ADJECTIVE, REPEATED_NOUN = 1.5, 0.75
UNPARSEABLE = -3.0
MAX_CLAUSES = 3
MAX_COMPLETION_TOKENS = 6 * MAX_CLAUSES + (MAX_CLAUSES - 1) + 2  # clauses, connectives, full stop and end of text

_SPLITS: Mapping[Split, slice] = {
    "train": slice(0, 8192),
    "validation": slice(8192, 8960),
    "test": slice(8960, 9984),
}

WIDTH = 64  # 105 thousand weights; they grow with its square
MAX_PAIRS = 15_360  # two per prompt, less a sixteenth in reserve for unusable pairs

_CLASS = {"the": "T", "not": "X", ".": "P"}
_CLASS |= dict.fromkeys(CONNECTIVES, "C") | dict.fromkeys(VERBS, "V") | dict.fromkeys(INTENSITY, "I")
_CLASS |= dict.fromkeys(NOUNS, "N") | dict.fromkeys(VALENCE, "A")
_REVIEW = re.compile(rf"TNVA(CTNVX?I?A){{1,{MAX_CLAUSES}}}P")
_CLAUSE = re.compile(r"C?TNVX?I?A")


@dataclass(frozen=True, slots=True)
class Clause:
    """One clause; `connective` introduces it, and is None for the prompt's clause."""

    connective: str | None
    noun: str
    verb: str
    adjective: str
    intensifier: str | None = None
    negated: bool = False

    @property
    def value(self) -> float:
        """Valence times intensity, inverted and damped by a negation; without emphasis."""
        intensity = INTENSITY[self.intensifier] if self.intensifier else 1.0
        return VALENCE[self.adjective] * intensity * (NEGATION if self.negated else 1.0)

    def words(self) -> str:
        """The clause as text, its connective included."""
        parts = (self.connective, "the", self.noun, self.verb, "not" if self.negated else None, self.intensifier)
        return " ".join([part for part in parts if part] + [self.adjective])


def parse(text: str) -> tuple[Clause, ...] | None:
    """The clauses of a review, prompt and completion, the prompt's first; None if it has another form."""
    words = text.split()
    classes = "".join(_CLASS.get(word, "?") for word in words)
    if not _REVIEW.fullmatch(classes):
        return None
    return tuple(
        _clause(dict(zip(match.group(), words[match.start() : match.end()], strict=True)))
        for match in _CLAUSE.finditer(classes)
    )


def _clause(word: Mapping[str, str]) -> Clause:
    return Clause(word.get("C"), word["N"], word["V"], word["A"], word.get("I"), negated="X" in word)


def review_reward(clauses: Sequence[Clause] | None) -> float:
    """The exact reward of a parsed review (see the module's formula)."""
    if clauses is None:
        return UNPARSEABLE
    written = clauses[1:]
    total = 0.0
    for clause in written:
        after_but = EMPHASIS if clause.connective == "but" else 1.0
        last = EMPHASIS if clause is written[-1] else 1.0
        total += clause.value * after_but * last
    total -= REPEATED_ADJECTIVE * (len(clauses) - len({clause.adjective for clause in clauses}))
    total -= REPEATED_NOUN * (len(clauses) - len({clause.noun for clause in clauses}))
    return total / (len(written) + 1)


@dataclass(frozen=True, kw_only=True)
class ReviewWorld(Rater):
    """The world of reviews."""

    pairs: int = 7936  # training pairs, two per prompt; at most 15,360
    seed: int = 0  # of the model's weights and its training
    width: int = WIDTH  # of the model's layers, a multiple of 8; texts and labels stay those of the default width

    def __post_init__(self) -> None:
        if not 1 <= self.pairs <= MAX_PAIRS:
            raise UserError(f"the review world has 1 to {MAX_PAIRS} training pairs, not {self.pairs}; set `pairs`")
        if self.width < 8 or self.width % 8:
            raise UserError(f"width of the review world's model is a multiple of 8, got {self.width}")
        if self.seed < 0:
            raise UserError(f"seed must be at least 0, got {self.seed}")
        super().__post_init__()

    def reward(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(n,) exact rewards of reviews, prompt and completion in one text."""
        return np.array([review_reward(parse(text)) for text in texts], dtype=np.float64)

    def valid(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """(n,) whether each review parses."""
        return np.array([parse(text) is not None for text in texts], dtype=np.bool_)

    def prompts(self, n: int, seed: int, split: Split) -> list[str]:
        """`n` different prompts of a split, in an order drawn from `seed`; the three splits share no prompt."""
        if n > split_size(split):
            raise UserError(f"the review world has {split_size(split)} {split} prompts, {n} were asked for")
        chosen = np.random.default_rng(seed).permutation(split_size(split))[:n]
        return [_all_prompts()[_SPLITS[split]][i] for i in chosen]

    def demonstrations(self, n: int, seed: int) -> list[tuple[str, str]]:
        """`n` (prompt, completion) of well-formed reviews, as many positive as negative, for SFT."""
        rng = random.Random(seed)
        prompts = _all_prompts()[_SPLITS["train"]]
        return [(prompt := rng.choice(prompts), _demonstration(prompt, rng)) for _ in range(n)]


def knobs(given: Mapping[str, Any]) -> ReviewWorld:
    """The review world with these settings, as `data.world.label_flips=0.2` gives them.

    Raises:
        UserError: a setting that the world does not have, or a value of another type or range.
    """
    return with_knobs(ReviewWorld, given, "review")


def split_size(split: Split) -> int:
    """The prompts of a split."""
    where = _SPLITS[split]
    return int(where.stop - where.start)


@cache
def _all_prompts() -> tuple[str, ...]:
    every = [f"the {n} {v} {a} {c}" for n, v, a, c in itertools.product(NOUNS, VERBS, VALENCE, CONNECTIVES)]
    order = np.random.default_rng(0).permutation(len(every))  # the splits never change
    return tuple(every[i] for i in order)


def _demonstration(prompt: str, rng: random.Random) -> str:
    """A review of mixed sentiment: of four clauses three agree with the previous one, or oppose it after "but"."""
    *_, adjective, connective = prompt.split()
    good = VALENCE[adjective] > 0
    clauses = []
    for number in range(rng.choices([1, 2, 3], weights=[3, 4, 3])[0]):
        connective = rng.choice(CONNECTIVES) if number else connective
        agrees = (rng.random() < 0.75) != (connective == "but")
        good = good if agrees else not good
        negated = rng.random() < 0.2
        clauses.append(
            Clause(
                connective=connective if number else None,
                noun=rng.choice(NOUNS),
                verb=rng.choice(VERBS),
                adjective=rng.choice(_BAD if good == negated else _GOOD),
                intensifier=rng.choice(tuple(INTENSITY)) if rng.random() < 0.4 else None,
                negated=negated,
            )
        )
    return " ".join(clause.words() for clause in clauses) + " ."
