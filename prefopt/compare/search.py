"""Which settings a method tries: as many for every method, by one rule, from what its plugin declares.

A plugin's `search_space` names its strength and four values of it, in rising order. Learning rates have no list: what
suits differs between methods by more than a factor of ten, so they go by a factor of three from the configured one, as
far as results lead.

The two inner strengths at the configured rate come first. Every later trial is the first one not yet made of these,
beside the best setting so far:

1. the learning rate below, then the one above, while nothing was tried on that side: a best rate at the edge is
   followed outward until it lies between two worse ones;
2. the neighbouring strengths, the outer one first;
3. the learning rate half way to the one below, then half way to the one above.

When all of that is tried, the next best setting is looked at in the same way. A run that failed ranks last; of several
such, the lowest rate is the most promising. A loss without a strength (SFT) begins with the configured rate and the one
below it. What is tried depends on the budget, the plugin and the results alone, so a second call takes the same way.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefopt.errors import UserError

if TYPE_CHECKING:
    from prefopt.config.run_config import RunConfig

STRENGTHS = 4
FACTOR = 3.0  # between neighbouring learning rates
FINEST = 0.5  # steps of that factor; what lies closer is not told apart by one training

Place = tuple[int, float]  # of the strength among its values, and the power of FACTOR of the learning rate
Score = Callable[["Setting"], float | None]


@dataclass(frozen=True)
class Setting:
    """What one trial sets: the strength by name (empty for a loss without one), and a learning rate."""

    strength: Mapping[str, float]
    learning_rate: float

    def plain(self) -> dict[str, float]:
        """As one would set it: hyper-parameters of the loss, and `learning_rate`."""
        return {**self.strength, "learning_rate": self.learning_rate}

    def overrides(self) -> list[str]:
        """As one would say it to `prefopt train`."""
        strength = [f"loss.{name}={value:g}" for name, value in self.strength.items()]
        return [*strength, f"trainer.learning_rate={self.learning_rate:.6g}"]

    def __str__(self) -> str:
        strength = [f"{name}={value:g}" for name, value in self.strength.items()]
        return ", ".join([*strength, f"lr={self.learning_rate:.3g}"])

    def apply(self, config: RunConfig) -> RunConfig:
        """The configuration with this setting.

        Raises:
            UserError: values that the loss refuses.
        """
        try:
            loss: Any = dataclasses.replace(config.loss, **self.strength)  # type: ignore[type-var]
        except (TypeError, ValueError) as error:
            raise UserError(f"loss={config.loss_name}: {error}") from error
        return dataclasses.replace(config, loss=loss, trainer={**config.trainer, "learning_rate": self.learning_rate})


def settings(config: RunConfig, trials: int, score: Score = lambda setting: None) -> list[Setting]:
    """A method's settings in the order of their trials, as far as it is known.

    Args:
        config: of the method, before the search.
        trials: how many it may try.
        score: of a setting that was tried, more is better; nan of one that failed; None of one that has no result yet.

    Returns:
        `trials` settings, or fewer where the next depends on a result that is not there.

    Raises:
        UserError: no trials, or a plugin whose search space cannot be used.
    """
    if trials < 1:
        raise UserError(f"budget.trials={trials} must be at least 1")
    rate = float(config.trainer["learning_rate"])
    name, values = strength(config.loss, config.loss_name)
    places: list[Place] = []
    found: list[Setting] = []
    scores: list[float | None] = []
    start: list[Place] = [(1, 0), (2, 0)] if name is not None else [(0, 0), (0, -1)]
    while len(found) < trials:
        if len(found) < len(start):
            place = start[len(found)]
        elif None in scores:
            break
        else:
            place = following(places, [math.nan if s is None else s for s in scores], max(1, len(values)))
        setting = Setting({name: values[place[0]]} if name is not None else {}, rate * FACTOR ** place[1])
        places.append(place)
        found.append(setting)
        scores.append(score(setting))
    return found


def following(tried: Sequence[Place], scores: Sequence[float], strengths: int) -> Place:
    """Where to look next: beside the best place so far, else beside the next best.

    Args:
        tried: places in the order of their trials.
        scores: of them; nan where a run failed.
        strengths: how many values the strength has.
    """

    def promise(i: int) -> tuple[float, float]:
        return (scores[i], 0.0) if not math.isnan(scores[i]) else (-math.inf, -tried[i][1])

    for i in sorted(range(len(tried)), key=promise, reverse=True):  # the earlier one of equals
        for place in _beside(tried[i], tried, strengths):
            if place not in tried:
                return place
    raise AssertionError("below the lowest learning rate there is always another")


def _beside(place: Place, tried: Sequence[Place], strengths: int) -> Iterator[Place]:
    strength, rate = place
    rates = [r for s, r in tried if s == strength]
    below, above = max((r for r in rates if r < rate), default=None), min((r for r in rates if r > rate), default=None)
    if below is None:
        yield strength, rate - 1
    if above is None:
        yield strength, rate + 1
    middle = (strengths - 1) / 2
    for other in sorted((strength - 1, strength + 1), key=lambda s: -abs(s - middle)):
        if 0 <= other < strengths:
            yield other, rate
    if below is not None and rate - below > FINEST:
        yield strength, (below + rate) / 2
    if above is not None and above - rate > FINEST:
        yield strength, (rate + above) / 2


def strength(loss: Any, name: str) -> tuple[str | None, tuple[float, ...]]:
    """The hyper-parameter that a plugin declares as its strength, and its four values; (None, ()) if it has none.

    Raises:
        UserError: a declaration of another form.
    """
    space: Mapping[str, tuple[float, ...]] = getattr(loss, "search_space", {})
    if not space:
        return None, ()
    known = {field.name for field in dataclasses.fields(loss)}
    ((parameter, values),) = space.items() if len(space) == 1 else (("", ()),)
    if parameter not in known or len(values) != STRENGTHS or list(values) != sorted(set(values)):
        raise UserError(f"loss {name!r}: search_space must name one hyper-parameter with {STRENGTHS} rising values, "
                        f"such as {{'beta': (0.03, 0.1, 0.3, 1.0)}}, got {dict(space)!r}")  # fmt: skip
    return parameter, tuple(values)


def at_edge(chosen: Mapping[str, float], tried: Sequence[Mapping[str, float]]) -> list[str]:
    """On which axes, and why, what lies beyond the chosen setting may be better.

    A learning rate is at the edge where none beyond it was tried, a strength where none beyond it is declared. A
    strength beyond which more are declared, and none was tried, is at no edge: the budget ended there, and it says so.

    Args:
        chosen: a setting as `Setting.plain` gives it.
        tried: all of them, in the order of `settings`. A search begins with the two inner ones of the four declared
            strengths, so one below or above both is the lowest or highest declared.
    """
    found = []
    for axis, value in chosen.items():
        values = list(dict.fromkeys(setting[axis] for setting in tried if axis in setting))
        if len(values) < 2 or min(values) < value < max(values):
            continue
        side, beyond = ("lowest", "lower") if value == min(values) else ("highest", "higher")
        if axis == "learning_rate":
            found.append(f"{axis}={value:g} is the {side} that was tried")
        elif value in values[:2]:
            found.append(f"{axis}={value:g} was not tried beyond: a {beyond} one is declared")
        else:
            found.append(f"{axis}={value:g} is the {side} that is declared")
    return found
