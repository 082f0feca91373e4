"""Chooses the settings that a method tries: the same number and one rule for every method.

A plugin's `search_space` names its strength and four values of it, in rising order; the configured value, by default
that of the catalogue, is one more. Learning rates have no list: the rates that suit different methods differ by more
than a factor of ten, so the search moves by a factor of three from the configured rate, as far as the results lead.

The first trial is the method as it is configured, strength and rate. The second is the next strength towards the middle
of the list, unless the first trial failed. Each later trial is the first of the following that has not been tried,
beside the best setting so far:

1. the learning rate below, then the one above, while nothing was tried on that side: a best rate at the edge is
   followed outward until it lies between two worse ones;
2. the neighbouring strengths, the outer one first;
3. the learning rate half way to the one below, then half way to the one above.

When all of these have been tried, the next best setting is treated in the same way. A failed run ranks last; of several
failed runs, the one with the lowest rate is the most promising, so that the search goes down until a run works. A loss
without a strength (SFT) tries rates alone. The trials depend on the budget, the configuration and the results alone, so
a second call makes the same ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.compare.spec import Budget
from prefopt.config.run_config import RunConfig
from prefopt.errors import UserError

STRENGTHS = 4
FACTOR = 3.0  # between neighbouring learning rates
FINEST = 0.5  # steps of that factor; a single run cannot tell closer rates apart

Place = tuple[int, float]  # the index of the strength, and the power of FACTOR of the learning rate
Score = Callable[["Setting"], float | None]


@dataclass(frozen=True)
class Setting:
    """The setting of one trial: the strength by name (empty for a loss without one), and a learning rate."""

    strength: Mapping[str, float]
    learning_rate: float

    def plain(self) -> dict[str, float]:
        """Return it as a dict: hyper-parameters of the loss, and `learning_rate`."""
        return {**self.strength, "learning_rate": self.learning_rate}

    def overrides(self) -> list[str]:
        """Return it as options of `prefopt train`."""
        strength = [f"loss.{name}={value:g}" for name, value in self.strength.items()]
        return [*strength, f"trainer.learning_rate={self.learning_rate:.6g}"]

    def __str__(self) -> str:
        strength = [f"{name}={value:g}" for name, value in self.strength.items()]
        return ", ".join([*strength, f"lr={self.learning_rate:.3g}"])

    def apply(self, config: RunConfig) -> RunConfig:
        """Return the configuration with this setting.

        Raises:
            UserError: the loss does not accept the values.
        """
        try:
            loss: Any = dataclasses.replace(config.loss, **self.strength)  # type: ignore[type-var]
        except (TypeError, ValueError) as error:
            raise UserError(f"loss={config.loss_name}: {error}") from error
        return dataclasses.replace(config, loss=loss, trainer={**config.trainer, "learning_rate": self.learning_rate})


def settings(config: RunConfig, trials: int, score: Score = lambda setting: None) -> list[Setting]:
    """Return a method's settings in the order of their trials, as far as they are known.

    Args:
        config: the method's configuration before the search.
        trials: how many settings it may try.
        score: gives a setting's score, higher is better; nan if the trial failed, None if it has no result yet.

    Returns:
        `trials` settings, or fewer where the next one depends on a missing result.

    Raises:
        UserError: `trials` is below 1, or the plugin's search space is invalid.
    """
    Budget.LIMITS["trials"].check("budget.trials", trials)
    rate = float(config.trainer["learning_rate"])
    name, values = strengths(config.loss, config.loss_name)
    first = values.index(getattr(config.loss, name)) if name is not None else 0
    places: list[Place] = []
    found: list[Setting] = []
    scores: list[float] = []
    while len(found) < trials:
        if not places:
            place: Place = (first, 0)
        elif len(places) == 1 and name is not None and not math.isnan(scores[0]):
            place = (first + (1 if first <= (len(values) - 1) / 2 else -1), 0)
        else:
            place = next_place(places, scores, max(1, len(values)))
        setting = Setting({name: values[place[0]]} if name is not None else {}, rate * FACTOR ** place[1])
        places.append(place)
        found.append(setting)
        if (reached := score(setting)) is None:
            break
        scores.append(reached)
    return found


def next_place(tried: Sequence[Place], scores: Sequence[float], strengths: int) -> Place:
    """Return the next place to try: beside the best place so far, else beside the next best.

    Args:
        tried: places in the order of their trials.
        scores: their scores; nan where a run failed.
        strengths: how many values the strength has.
    """

    def promise(i: int) -> tuple[float, float]:
        return (scores[i], 0.0) if not math.isnan(scores[i]) else (-math.inf, -tried[i][1])

    for i in sorted(range(len(tried)), key=promise, reverse=True):  # the earlier one of equals
        for place in _neighbours(tried[i], tried, strengths):
            if place not in tried:
                return place
    raise AssertionError("there is always a lower learning rate")


def _neighbours(place: Place, tried: Sequence[Place], strengths: int) -> Iterator[Place]:
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
    """Return the hyper-parameter that a plugin declares as its strength, and its four values; else (None, ()).

    Raises:
        UserError: the declaration has another form.
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


def strengths(loss: Any, name: str) -> tuple[str | None, tuple[float, ...]]:
    """Return the strength by name and all values to try, in rising order: those declared and the configured one."""
    parameter, values = strength(loss, name)
    if parameter is None:
        return None, ()
    return parameter, tuple(sorted({*values, getattr(loss, parameter)}))


def at_edge(
    chosen: Mapping[str, float], tried: Sequence[Mapping[str, float]], values: Sequence[float] = ()
) -> list[str]:
    """Return on which axes, and why, a setting beyond the chosen one may be better.

    A learning rate is at the edge where none beyond it was tried, a strength where none beyond it is declared (a
    configured one may itself lie beyond those). Where further strengths are declared but the budget ended before they
    were tried, the text says so.

    Args:
        chosen: a setting as `Setting.plain` gives it.
        tried: all settings.
        values: those declared for the strength, as `strength` gives them.
    """
    found = []
    for axis, value in chosen.items():
        known = {setting[axis] for setting in tried if axis in setting}
        if len(tried) < 2 or min(known) < value < max(known):
            continue
        at = f"{axis}={value:g} is"
        if axis == "learning_rate":
            found += [f"{at} the {'lowest' if value == min(known) else 'highest'} that was tried"] * (len(known) > 1)
        elif value < values[0] or value > values[-1]:
            found.append(f"{at} configured, {'below' if value < values[0] else 'above'} all that are declared")
        elif value in (min(values[0], *known), max(values[-1], *known)):
            found.append(f"{at} the {'lowest' if value == values[0] else 'highest'} that is declared")
        elif len(known) == 1:
            found.append(f"{at} the only one that was tried: others are declared")
        else:
            beyond = "lower" if value == min(known) else "higher"
            found.append(f"{axis}={value:g} was not tried beyond: a {beyond} one is declared")
    return found
