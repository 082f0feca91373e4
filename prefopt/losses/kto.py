"""KTO: Model Alignment as Prospect Theoretic Optimization (Ethayarajh et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, SearchSpace, UnpairedLogps, require


@dataclass(frozen=True, kw_only=True)
class KTO:
    r"""Prospect-theoretic loss on single completions, each desirable or not, relative to a shared reference point.

    L = lambda_D * (1 - sigmoid(beta * (rho - z0)))   desirable
    L = lambda_U * (1 - sigmoid(beta * (z0 - rho)))   undesirable     (Eq. 7: lambda_y - v)
    z0 = max(0, mean over the batch of rho on mismatched (x_i, y_j)), without gradient;  rho = log pi - log pi_ref

    Value at policy = reference: lambda_D / 2 on a desirable item, lambda_U / 2 on an undesirable one.

    Identities: kto where the mismatched mean is below 0 = kto_zero.

    Differences: z0 is the mean over the global batch, whatever the micro-batches and processes (TRL 1.16 gathers it
    over processes, but per micro-batch). `metrics` holds `z0` and, before the clamp, `z0_unclamped`: a z0 that stays at
    0 makes this `kto_zero`.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2402.01306"
    needs: ClassVar[Needs] = Needs(data=Data.UNPAIRED, reference=True, mismatched=True, coupled=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    learning_rates: ClassVar[LearningRates] = LearningRates(3e-7, 5e-6, "arXiv:2402.01306 (5e-7 to 5e-6)")
    audit: ClassVar[Audit] = Audit(Level.AUTHORS_CODE, "ContextualAI/HALOs train/trainers.py@4831988", "2026-11-29")

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1
    desirable_weight: float = 1.0  # lambda_D; keep lambda_D n_D / (lambda_U n_U) within 1 to 3/2, n the label counts
    undesirable_weight: float = 1.0  # lambda_U; see desirable_weight

    def __post_init__(self) -> None:
        require_weights(self)

    def __call__(self, logps: UnpairedLogps, /) -> LossOutput:
        if logps.mismatched is None:
            raise ValueError("kto needs mismatched completions: this batch came without (`kto_zero` needs none)")
        unclamped = logps.mismatched.ratio.mean().detach()
        z0 = unclamped.clamp(min=0)
        output = prospect_loss(self, logps, z0)
        return LossOutput(loss=output.loss, reward=output.reward, metrics={"z0": z0, "z0_unclamped": unclamped})

    def at_reference(self, logps: UnpairedLogps, /) -> Tensor:
        return label_weights(self, logps) / 2


@dataclass(frozen=True, kw_only=True)
class KTOZero:
    r"""KTO with a reference point of 0.

    L = lambda_D * (1 - sigmoid(beta * rho))   desirable
    L = lambda_U * (1 - sigmoid(-beta * rho))  undesirable     (Eq. 7 at z0 = 0);  rho = log pi - log pi_ref

    Value at policy = reference: lambda_D / 2 on a desirable item, lambda_U / 2 on an undesirable one.

    Identities: kto_zero, both items of a pair = apo_zero.

    Differences: of their class of this form (`KTOZeroTrainer`, in earlier versions of HALOs) the authors say that it is
    there to understand the importance of the KL term (z0), and not for use in practice, "as its performance is usually
    inferior". In TRL 1.16 it is `KTOTrainer(loss_type="apo_zero_unpaired")`. No mismatched
    completions, and no coupling.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2402.01306"
    needs: ClassVar[Needs] = Needs(data=Data.UNPAIRED, reference=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    learning_rates: ClassVar[LearningRates] = LearningRates(3e-7, 5e-6, "arXiv:2402.01306 (5e-7 to 5e-6)")
    audit: ClassVar[Audit] = Audit(Level.AUTHORS_CODE, "ContextualAI/HALOs train/trainers.py@5931b71", "2026-11-29")

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1
    desirable_weight: float = 1.0  # lambda_D; keep lambda_D n_D / (lambda_U n_U) within 1 to 3/2, n the label counts
    undesirable_weight: float = 1.0  # lambda_U; see desirable_weight

    def __post_init__(self) -> None:
        require_weights(self)

    def __call__(self, logps: UnpairedLogps, /) -> LossOutput:
        return prospect_loss(self, logps, torch.zeros_like(logps.completion.sum[0]))

    def at_reference(self, logps: UnpairedLogps, /) -> Tensor:
        return label_weights(self, logps) / 2


def prospect_loss(loss: KTO | KTOZero, logps: UnpairedLogps, z0: Tensor) -> LossOutput:
    """Shared value function; 1 - sigmoid(x) is written sigmoid(-x), which is precise."""
    ratio = logps.completion.ratio
    away = torch.where(logps.desirable, z0 - ratio, ratio - z0)
    value = label_weights(loss, logps) * torch.sigmoid(loss.beta * away)
    return LossOutput(loss=value, reward=(loss.beta * ratio).detach())


def label_weights(loss: KTO | KTOZero, logps: UnpairedLogps) -> Tensor:
    """(B,) lambda_D or lambda_U, by label."""
    ones = torch.ones_like(logps.completion.sum)
    return torch.where(logps.desirable, loss.desirable_weight * ones, loss.undesirable_weight * ones)


def require_weights(loss: KTO | KTOZero) -> None:
    require(
        loss,
        beta=0 < loss.beta < math.inf,
        desirable_weight=0 <= loss.desirable_weight < math.inf,
        undesirable_weight=0 <= loss.undesirable_weight < math.inf,
    )
