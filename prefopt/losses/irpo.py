"""IRPO: Iterative Reasoning Preference Optimization (Pang et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from prefopt.plugin import Audit, Data, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class IRPO:
    r"""DPO plus the chosen side's likelihood per token.

    L = -log sigmoid(beta * (rho_w - rho_l)) - alpha * log pi(y_w|x) / n_w

    Value at policy = reference: log 2 - alpha * log pi_ref(y_w|x) / n_w.

    Identities: irpo(alpha=0.0) = dpo.

    Differences: none in the loss; the paper's iterations (new samples in each) concern the data. TRL 1.16 has it as
    `loss_type=["sigmoid", "sft"]` with `loss_weights=[1, alpha]`, where the mean is over all tokens of the micro-batch.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2404.19733"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, lengths=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    chosen_rises: ClassVar[bool] = True
    audit: ClassVar[Audit] = Audit(
        Level.DERIVED,
        "arXiv:2404.19733, the loss of one iteration; TRL 1.16.0 trl/trainer/dpo_trainer.py",
        "2026-11-30",
    )

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1
    alpha: float = 1.0  # weight of the likelihood term, per (nat/token); useful range 0.1 to 2

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, alpha=0 <= self.alpha < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        return LossOutput(
            loss=-F.logsigmoid(chosen - rejected) - self.alpha * logps.chosen.mean,
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
            metrics={"nll": -logps.chosen.mean.detach()},
        )

    def at_reference(self, logps: PairLogps, /) -> Tensor:
        return math.log(2) - self.alpha * logps.chosen.ref_mean
