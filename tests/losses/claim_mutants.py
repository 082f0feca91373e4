"""Deliberately broken copies of losses whose comments, docstrings or running averages do not hold what they promise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prefopt.losses import BCO, DPO, Hinge
from prefopt.plugin import LossOutput, SearchSpace, State, UnpairedLogps

mutant = dataclass(frozen=True, kw_only=True)


@mutant
class MisstatedHinge(Hinge):
    """A docstring whose value at the reference is not the loss's.

    L = max(0, 1 - beta * (rho_w - rho_l))

    Value at policy = reference: log 2.

    Differences: none.
    """


@mutant
class FarDPO(DPO):
    """A default outside the range that its own comment calls useful."""

    beta: float = 10.0  # reward per nat of log-ratio; useful range 0.01 to 1


@mutant
class OverreachingDPO(DPO):
    """A search among values that the plugin refuses."""

    search_space: ClassVar[SearchSpace] = {"beta": (0.0, 0.1, 0.3, 1.0)}


@mutant
class ColdBCO(BCO):
    """A threshold that has to grow from 0 for many batches, as the moving averages of alpha-DPO's authors do."""

    def __call__(self, logps: UnpairedLogps, state: State, /) -> LossOutput:
        counts = state["counts"] + 100.0 * (state["counts"] == 0)
        return super().__call__(logps, {"means": state["means"], "counts": counts})
