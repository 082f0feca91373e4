"""WPO: Enhancing RLHF with Weighted Preference Optimization (Zhou et al., 2024)."""

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
    Vocab,
    require,
)


@dataclass(frozen=True, kw_only=True)
class WPO:
    r"""DPO weighted by how likely the policy is to produce the pair.

    L = -min(1, w_w * w_l) * log sigmoid(beta * (rho_w - rho_l)),   rho = log pi - log pi_ref     (Eq. 2)
    w = exp(mean_t(log pi(y_t|...) - log sum_v pi(v|...)^2)), without gradient

    Value at policy = reference: log 2 times the weight.

    Identities: wpo where tokens are as likely as sum_v p_v^2 = dpo.

    Differences: TRL 1.16 (`use_weighting`) omits the min, open-instruct the sum over the vocabulary; the authors' code
    has both. w_w * w_l can exceed 1, since a token likelier than sum_v pi(v)^2 counts more than average.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2406.11827"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, lengths=True, vocab=frozenset({Vocab.LOG_SUM_SQ}))
    search_space: ClassVar[SearchSpace] = {"beta": (0.01, 0.1, 0.3, 1.0)}
    learning_rates: ClassVar[LearningRates] = LearningRates(5e-7, 1e-6, "wzhouad/WPO training_configs")
    audit: ClassVar[Audit] = Audit(Level.DERIVED, "arXiv:2406.11827, Eq. 2", "2026-11-29")

    beta: float = 0.01  # reward per nat of log-ratio; useful range 0.01 to 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        weight = _weight(logps)
        return LossOutput(
            loss=-weight * F.logsigmoid(chosen - rejected),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
            metrics={"weight": weight},
        )

    def at_reference(self, logps: PairLogps, /) -> Tensor:
        return math.log(2) * _weight(logps)


def _weight(logps: PairLogps) -> Tensor:
    """(B,) min(1, w_w w_l), the min taken on the logarithm so that nothing overflows."""
    return torch.exp((_log_weight(logps.chosen) + _log_weight(logps.rejected)).clamp(max=0)).detach()


def _log_weight(side: Logps) -> Tensor:
    """(B,) mean_t(log p_t - log sum_v p_v^2); the first mean is that of the whole completion."""
    return side.mean - (side.vocab("log_sum_sq") * side.mask).sum(-1) / side.num_tokens
