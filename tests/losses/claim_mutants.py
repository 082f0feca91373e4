"""Deliberately broken copies of losses whose comments, docstrings or running averages do not hold what they promise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from prefopt.losses import BCO, DPO, RLOO, Hinge
from prefopt.plugin import Data, ListLogps, LossOutput, Needs, PairLogps, SearchSpace, State, UnpairedLogps, Vocab

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


@mutant
class NoBaselineRLOO(RLOO):
    """Rewards as they are, without what the other samples got: a constant reward then moves the policy."""

    def targets(self, rollout: ListLogps, /) -> Mapping[str, Tensor]:
        return {"advantage": rollout.scores * rollout.mask}


@mutant
class PooledRLOO(RLOO):
    """One advantage a prompt instead of one a sample."""

    def targets(self, rollout: ListLogps, /) -> Mapping[str, Tensor]:
        return {"advantage": super().targets(rollout)["advantage"].sum(-1)}


@mutant
class UnmovedDPO(DPO):
    """It reads what moved policies sum to, and does not say by how much they are moved."""

    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, vocab=frozenset({Vocab.LOG_AWAY}))

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        output = super().__call__(logps)
        return replace(output, loss=output.loss + logps.chosen.vocab("log_away").sum(-1))
