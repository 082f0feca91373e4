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
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from prefopt.errors import UserError, nearest

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

Split = Literal["train", "validation", "test"]
_SPLITS: Mapping[Split, slice] = {
    "train": slice(0, 8192),
    "validation": slice(8192, 8960),
    "test": slice(8960, 9984),
}

MAX_BEST_OF = 16
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
class ReviewWorld:
    """The world of reviews, and how its preferences are labelled.

    Two completions a and b of one prompt are labelled by Bradley-Terry:
    P(a chosen) = sigmoid((r(a) - r(b) + length_bias * (tokens of a - tokens of b)) / label_temperature),
    then flipped with probability `label_flips`.
    """

    pairs: int = 7936  # training pairs, two per prompt; at most 15,360
    label_temperature: float = 0.5  # in units of reward; near 0 the better text is always chosen
    label_flips: float = 0.0  # share of flipped labels, 0 to 0.5
    length_bias: float = 0.0  # reward per token that the labels see and the true reward does not
    best_of: int = 1  # the second text of a pair is the best of this many samples, by exact reward
    desirable_dropped: float = 0.0  # share of chosen texts left out; above 0 the training data is unpaired
    seed: int = 0  # of the model's weights and its training
    draw: int = 0  # of the texts and labels: other data from the same models

    def __post_init__(self) -> None:
        if not 1 <= self.pairs <= MAX_PAIRS:
            raise UserError(f"the review world has 1 to {MAX_PAIRS} training pairs, not {self.pairs}; set `pairs`")
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
        if self.seed < 0 or self.draw < 0:
            raise UserError(f"seed and draw must be at least 0, got {self.seed} and {self.draw}")

    def reward(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(n,) exact rewards of reviews, prompt and completion in one text."""
        return np.array([review_reward(parse(text)) for text in texts], dtype=np.float64)

    def valid(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """(n,) whether each review parses."""
        return np.array([parse(text) is not None for text in texts], dtype=np.bool_)

    def prompts(self, n: int, seed: int, split: Split) -> list[str]:
        """`n` different prompts of a split, in an order drawn from `seed`; the three splits share no prompt."""
        if n > _size(split):
            raise UserError(f"the review world has {_size(split)} {split} prompts, {n} were asked for")
        chosen = np.random.default_rng(seed).permutation(_size(split))[:n]
        return [_all_prompts()[_SPLITS[split]][i] for i in chosen]

    def demonstrations(self, n: int, seed: int) -> list[tuple[str, str]]:
        """`n` (prompt, completion) of well-formed reviews, as many positive as negative, for SFT."""
        rng = random.Random(seed)
        prompts = _all_prompts()[_SPLITS["train"]]
        return [(prompt := rng.choice(prompts), _demonstration(prompt, rng)) for _ in range(n)]

    def preference(self, reward_gap: NDArray[np.float64], token_gap: NDArray[np.int64] | int) -> NDArray[np.float64]:
        """(n,) probability that the first text is chosen, given its reward and length minus those of the second."""
        logit = (reward_gap + self.length_bias * token_gap) / self.label_temperature
        clean = 0.5 * (1.0 + np.tanh(0.5 * logit))  # the sigmoid, safe from overflow
        return np.asarray(clean * (1 - self.label_flips) + (1 - clean) * self.label_flips)


def knobs(given: Mapping[str, Any]) -> ReviewWorld:
    """The review world with these settings, as `data.world.label_flips=0.2` gives them.

    Raises:
        UserError: a setting that the world does not have, or a value of another type or range.
    """
    defaults = {field.name: field.default for field in fields(ReviewWorld)}
    for name, value in given.items():
        if name not in defaults:
            raise UserError(
                f"the review world has no knob {name!r}{nearest(name, defaults)}; its knobs: {', '.join(defaults)}"
            )
        whole = isinstance(defaults[name], int)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise UserError(
                f"the knob {name} of the review world is a {'whole ' if whole else ''}number, got {value!r}"
            )
    return ReviewWorld(**given)


def _size(split: Split) -> int:
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
