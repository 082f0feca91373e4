"""Which settings a method may try: as many for every method, by one rule, from what its plugin declares.

A plugin's `search_space` names its strength and four values of it, in rising order. Beside them stand three learning
rates, a third of the configured one, itself, and three times it: a grid of twelve. `budget.trials` takes the first so
many of it in a fixed order: the two inner strengths, then the outer ones, all at the configured rate, then the inner
ones at the lower and the higher rate, then the rest. Strength comes first because Adam takes the scale out of the
gradient: what rate suits depends on the model more than on the loss, and how far a method goes on its strength.

A loss without a strength (SFT) tries as many learning rates instead, in half steps of the factor 3 away from the
configured one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefopt.errors import UserError

if TYPE_CHECKING:
    from prefopt.run import RunConfig

STRENGTHS, RATES = 4, 3
FACTOR = 3.0  # between neighbouring learning rates
_INNER, _OUTER = (1, 2), (0, 3)
# (strength, learning rate) by place in the grid; 1 is the configured learning rate
ORDER = (
    *((s, 1) for s in _INNER), *((s, 1) for s in _OUTER),
    *((s, r) for r in (0, 2) for s in _INNER), *((s, r) for r in (0, 2) for s in _OUTER),
)  # fmt: skip
MAX_TRIALS = len(ORDER)


@dataclass(frozen=True)
class Setting:
    """One point of a method's grid: its strength by name (empty for a loss without one), and a learning rate."""

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


def settings(config: RunConfig, trials: int) -> list[Setting]:
    """The first `trials` settings of a configuration's method.

    Raises:
        UserError: more trials than the grid has, or a plugin whose search space cannot be used.
    """
    if not 1 <= trials <= MAX_TRIALS:
        raise UserError(f"budget.trials={trials} must be from 1 to {MAX_TRIALS}: a grid has {STRENGTHS} strengths "
                        f"times {RATES} learning rates")  # fmt: skip
    rate = float(config.trainer["learning_rate"])
    name, values = strength(config.loss, config.loss_name)
    if name is None:
        exponents = [(-1) ** i * ((i + 1) // 2) / 2 for i in range(trials)]
        return [Setting({}, rate * FACTOR**exponent) for exponent in exponents]
    return [Setting({name: values[s]}, rate * FACTOR ** (r - 1)) for s, r in ORDER[:trials]]


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
    """The axes on which the chosen setting is the lowest or highest of at least three that were tried."""
    found = []
    for axis, value in chosen.items():
        values = sorted({setting[axis] for setting in tried if axis in setting})
        if len(values) >= 3 and value in (values[0], values[-1]):
            found.append(f"{axis}={value:g} is the {'lowest' if value == values[0] else 'highest'} that was tried")
    return found
