"""CPO: Contrastive Preference Optimization (Xu et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class CPO:
    r"""DPO with a uniform reference, plus the chosen side's likelihood per token.

    L = -log sigmoid(beta * (log pi(y_w|x) - log pi(y_l|x))) - alpha * log pi(y_w|x) / n_w

    Value at policy = reference: none, it has no reference.

    Identities: cpo(alpha=0) where the reference likes both sides equally = dpo.

    Differences: the authors' README sums the likelihood term, their code takes the mean over the micro-batch's tokens;
    here it is the mean over each example's own. TRL 1.16 (`CPOTrainer`, `cpo_alpha`) takes the mean over all chosen
    tokens of the micro-batch, prompts masked.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2401.08417"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=False, lengths=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    chosen_rises: ClassVar[bool] = True
    learning_rates: ClassVar[LearningRates] = LearningRates(3e-7, 1e-6, "arXiv:2405.14734, appendix (3e-7 to 1e-6)")
    audit: ClassVar[Audit] = Audit(Level.AUTHORS_CODE, "fe1ixxu/CPO_SIMPO scripts/cpo_trainer.py@dd6caf5", "2026-11-29")

    beta: float = 0.1  # reward per nat; useful range 0.01 to 1
    alpha: float = 1.0  # weight of the likelihood term, per (nat/token); useful range 0 to 2

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, alpha=0 <= self.alpha < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.sum, self.beta * logps.rejected.sum
        return LossOutput(
            loss=-F.logsigmoid(chosen - rejected) - self.alpha * logps.chosen.mean,
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
            metrics={"nll": -logps.chosen.mean.detach()},
        )


@dataclass(frozen=True, kw_only=True)
class CPOSimPO:
    r"""SimPO plus the chosen side's likelihood per token.

    L = -log sigmoid(beta * (l_w - l_l - gamma_beta_ratio)) - alpha * l_w,   l = log pi(y|x) / n

    Value at policy = reference: none, it has no reference.

    Identities: cpo_simpo(alpha=0.0, beta=2.0, gamma_beta_ratio=0.5) = simpo.

    Differences: from the repository of CPO, not its paper. Its gamma is absolute, 5.4 at beta = 10; here it is the
    ratio 0.54, as in `simpo`. TRL 1.16: `CPOTrainer(loss_type="simpo")` with `simpo_gamma` = 5.4 and `cpo_alpha` =
    0.05.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2401.08417"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=False, lengths=True)
    search_space: ClassVar[SearchSpace] = {"beta": (2.0, 3.5, 6.0, 10.0)}
    chosen_rises: ClassVar[bool] = True
    learning_rates: ClassVar[LearningRates] = LearningRates(1e-6, 1e-6, "fe1ixxu/CPO_SIMPO training_configs")
    audit: ClassVar[Audit] = Audit(Level.AUTHORS_CODE, "fe1ixxu/CPO_SIMPO scripts/cpo_trainer.py@dd6caf5", "2026-11-29")

    beta: float = 10.0  # reward per (nat/token); useful range 2 to 10
    gamma_beta_ratio: float = 0.54  # target margin in nats/token; 0.1 to 0.8
    alpha: float = 0.05  # weight of the likelihood term, per (nat/token); useful range 0 to 1

    def __post_init__(self) -> None:
        require(
            self,
            beta=0 < self.beta < math.inf,
            gamma_beta_ratio=-math.inf < self.gamma_beta_ratio < math.inf,
            alpha=0 <= self.alpha < math.inf,
        )

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = logps.chosen.mean, logps.rejected.mean
        margin = chosen - rejected - self.gamma_beta_ratio
        return LossOutput(
            loss=-F.logsigmoid(self.beta * margin) - self.alpha * chosen,
            chosen_reward=(self.beta * chosen).detach(),
            rejected_reward=(self.beta * rejected).detach(),
            metrics={"nll": -chosen.detach()},
        )
