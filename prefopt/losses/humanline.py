"""Humanline: Online Alignment as Perceptual Loss (Liu et al., 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.plugin import (
    Audit,
    Data,
    LearningRates,
    Level,
    Logps,
    LossOutput,
    Needs,
    PairLogps,
    SearchSpace,
    UnpairedLogps,
    require,
)

_AUDIT = Audit(Level.AUTHORS_CODE, "ContextualAI/HALOs train/trainers.py@4831988", "2026-11-30")


@dataclass(frozen=True, kw_only=True)
class HumanlineDPO:
    r"""DPO on log-ratios that are clamped token by token, against the policy of a step before.

    L = -log sigmoid(beta * (R_w - R_l)),   R = sum_t clamp(log pi(y_t|...) - log pi_ref(y_t|...), low, high)
    after each step: pi_ref <- the policy that the step began with

    Value at policy = reference: log 2.

    Identities: humanline_dpo(low=-1000.0, high=1000.0) = dpo.

    Differences: none from the authors' code (`humanline=true`), whose reference takes the policy's weights just before
    the optimizer changes them, with `sync_steps` 1.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2509.24207"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, tokens=True, moving_reference=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = _AUDIT
    learning_rates: ClassVar[LearningRates] = LearningRates(
        1e-6,
        5e-6,
        "ContextualAI/HALOs scripts/batch_launch_online.sh@3b46519 (1e-6, without humanline), "
        "config/config.yaml@00a123c (5e-6)",
    )
    reference_lags: ClassVar[bool] = True

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1
    low: float = -1.0  # least log-ratio of a token, in nats; useful range -2 to -0.5, at most 0
    high: float = 1.5  # greatest log-ratio of a token, in nats; useful range 0.5 to 2, at least 0
    sync_steps: int = 1  # optimizer steps between updates of the reference; useful range 1 to 8, at least 1

    def __post_init__(self) -> None:
        _require(self)

    @property
    def reference_update(self) -> tuple[float, int]:
        """(1, steps): the reference becomes the policy, every so many steps."""
        return 1.0, self.sync_steps

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = (self.beta * _clamped(self, side) for side in (logps.chosen, logps.rejected))
        return LossOutput(
            loss=-F.logsigmoid(chosen - rejected),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> float:
        return math.log(2)


@dataclass(frozen=True, kw_only=True)
class HumanlineKTO:
    r"""KTO on log-ratios that are clamped token by token, against the policy of a step before.

    L = lambda_D * (1 - sigmoid(beta * (R - z0)))   desirable
    L = lambda_U * (1 - sigmoid(beta * (z0 - R)))   undesirable,   R as in `humanline_dpo`
    z0 = max(0, mean over the batch of R on mismatched (x_i, y_j)), without gradient

    Value at policy = reference: lambda_D / 2 on a desirable item, lambda_U / 2 on an undesirable one.

    Identities: humanline_kto(low=-1000.0, high=1000.0) = kto.

    Differences: none from the authors' code (`humanline=true`), except that z0 is the mean over the global batch
    (theirs is per micro-batch, of the mismatched completions whose R is not 0). The reference moves as in
    `humanline_dpo`. The authors' recipe has lambda_D 1.1.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2509.24207"
    needs: ClassVar[Needs] = Needs(
        data=Data.UNPAIRED, reference=True, tokens=True, mismatched=True, coupled=True, moving_reference=True
    )
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = _AUDIT
    learning_rates: ClassVar[LearningRates] = LearningRates(
        1e-6,
        5e-6,
        "ContextualAI/HALOs scripts/batch_launch_online.sh@3b46519 (1e-6, without humanline), "
        "config/config.yaml@00a123c (5e-6)",
    )
    reference_lags: ClassVar[bool] = True

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1
    desirable_weight: float = 1.0  # lambda_D; keep lambda_D n_D / (lambda_U n_U) within 1 to 3/2, n the label counts
    undesirable_weight: float = 1.0  # lambda_U; see desirable_weight
    low: float = -1.0  # least log-ratio of a token, in nats; useful range -2 to -0.5, at most 0
    high: float = 1.5  # greatest log-ratio of a token, in nats; useful range 0.5 to 2, at least 0
    sync_steps: int = 1  # optimizer steps between updates of the reference; useful range 1 to 8, at least 1

    def __post_init__(self) -> None:
        weights = {name: 0 < getattr(self, name) < math.inf for name in ("desirable_weight", "undesirable_weight")}
        require(self, **weights)
        _require(self)

    @property
    def reference_update(self) -> tuple[float, int]:
        """(1, steps): the reference becomes the policy, every so many steps."""
        return 1.0, self.sync_steps

    def __call__(self, logps: UnpairedLogps, /) -> LossOutput:
        if logps.mismatched is None:
            raise ValueError("humanline_kto needs mismatched completions: this batch came without")
        ratio = _clamped(self, logps.completion)
        z0 = _clamped(self, logps.mismatched).mean().detach().clamp(min=0)
        away = torch.where(logps.desirable, z0 - ratio, ratio - z0)
        return LossOutput(
            loss=self._weights(logps) * torch.sigmoid(self.beta * away),
            reward=(self.beta * ratio).detach(),
            metrics={"z0": z0},
        )

    def _weights(self, logps: UnpairedLogps) -> Tensor:
        ones = torch.ones_like(logps.completion.ratio)
        return torch.where(logps.desirable, self.desirable_weight * ones, self.undesirable_weight * ones)

    def at_reference(self, logps: UnpairedLogps, /) -> Tensor:
        return self._weights(logps) / 2


def _clamped(loss: HumanlineDPO | HumanlineKTO, side: Logps) -> Tensor:
    policy, reference = side.per_token, side.ref_per_token
    ratio = (policy - reference) if policy.dtype == torch.float64 else policy.float() - reference.float()
    return ratio.clamp(loss.low, loss.high).sum(-1)


def _require(loss: HumanlineDPO | HumanlineKTO) -> None:
    require(
        loss,
        beta=0 < loss.beta < math.inf,
        low=-math.inf < loss.low <= 0,
        high=0 <= loss.high < math.inf,
        sync_steps=loss.sync_steps >= 1,
    )
