"""Combines rewards: means, minima and weighted sums, in the grammar of the option `reward`.

reward  =  NAME                                        one reward: see docs/own_samples.md
        |  {mean: [reward, ...], variance: NUMBER}     the mean of an ensemble, less NUMBER times its variance
        |  {min: [reward, ...]}                        the least of an ensemble
        |  {sum: [reward, ...], weights: [NUMBER, ...]}
        |  {centred: NAME}                             a reward model, less its mean score on held-out records
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.common.digest import of_json
from prefopt.errors import UserError, nearest
from prefopt.rewards.reward import Answer, Reward, scores_of

Floats = NDArray[np.float64]
KINDS = {"mean": "variance", "min": None, "sum": "weights", "centred": None}  # and what each takes beside its rewards


@dataclass(frozen=True)
class Combined:
    """A reward made of several: `rule` makes (n,) of their scores (k, n)."""

    name: str
    parts: tuple[Reward, ...]
    rule: Callable[[Floats], Floats]

    def __call__(self, answers: Sequence[Answer], /) -> Floats:
        """(n,) scores."""
        return self.rule(np.stack([scores_of(part(answers), answers, part.name) for part in self.parts]))


def digest_of(reward: Reward | None) -> str | None:
    """A digest of what a reward is made of, besides its name: the files of functions, the weights of reward models;
    None for a world's rule, and for what was typed into an interpreter."""
    found = sorted(filter(None, (getattr(part, "digest", None) for part in _parts(reward))))
    return None if not found else found[0] if len(found) == 1 else of_json(found)


def _parts(reward: Any) -> list[Any]:
    return [part for r in reward.parts for part in _parts(r)] if isinstance(reward, Combined) else [reward]


def combined(given: Any, named: Callable[[str, bool], Reward]) -> Reward:
    """The reward that the option gives.

    Args:
        given: a name, or a mapping in the grammar above.
        named: makes the reward of a name; of a reward model less its mean score, if the flag is set.

    Raises:
        UserError: it is not in the grammar, or a name is no reward.
    """
    if isinstance(given, str):
        return named(given, False)
    if not isinstance(given, Mapping):
        raise UserError(f"reward={given} is neither a name nor a table such as {{mean: [runs/rm0, runs/rm1]}}")
    kind = _kind(given)
    if kind == "centred":
        if not isinstance(given[kind], str):
            raise UserError(f"reward={{centred: {given[kind]}}}: give the folder of one reward model")
        return named(given[kind], True)
    if not isinstance(given[kind], list | tuple) or not given[kind]:
        raise UserError(
            f"reward={{{kind}: {given[kind]}}}: give a list of rewards, such as {{{kind}: [runs/rm0, runs/rm1]}}"
        )
    parts = tuple(combined(part, named) for part in given[kind])
    names = ", ".join(part.name for part in parts)
    if kind == "min":
        return Combined(f"min({names})", parts, lambda scores: scores.min(0))
    if kind == "sum":
        weights = _weights(given.get("weights"), len(parts))
        return Combined(f"sum({names}; {weights.tolist()})", parts, lambda scores: weights @ scores)
    penalty = _number("variance", given.get("variance", 0.0))
    return Combined(f"mean({names}; {penalty})", parts, lambda scores: scores.mean(0) - penalty * scores.var(0))


def _kind(given: Mapping[Any, Any]) -> str:
    """Which of the four a table is.

    Raises:
        UserError: none or several, or a key that does not belong to it.
    """
    found = [key for key in given if key in KINDS]
    if len(found) != 1:
        keys = ", ".join(map(str, given)) or "nothing"
        hint = next((h for key in given if (h := nearest(str(key), list(KINDS)))), "")
        raise UserError(f"reward: a table has one of {', '.join(KINDS)}; this one has {keys}{hint}")
    kind = str(found[0])
    other = [str(key) for key in given if key not in (kind, KINDS[kind])]
    if other:
        takes = f"takes {KINDS[kind]}" if KINDS[kind] else "takes nothing else"
        raise UserError(f"reward: {kind} {takes}, not {', '.join(other)}")
    return kind


def _weights(given: Any, count: int) -> Floats:
    if given is None:
        return np.ones(count)
    if not isinstance(given, list | tuple) or len(given) != count:
        raise UserError(f"reward: weights={given} must be a list of {count} numbers, one for each reward of the sum")
    return np.array([_number("weights", value) for value in given])


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"reward: {name}={value} must be a number")
    return float(value)
