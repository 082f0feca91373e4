"""SimPO: Simple Preference Optimization with a Reference-Free Reward (Meng et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class SimPO:
    r"""Reference-free Bradley-Terry loss on length-averaged log-probs, with a margin.

    L = -log sigmoid(beta * (lw - ll - gamma_beta_ratio)),   l = log pi(y|x) / |y|     (Eq. 6)

    Value at policy = reference: none, it has no reference.

    Identities: simpo(gamma_beta_ratio=0) at n tokens = cpo(beta/n, alpha=0); simpo/beta, beta to infinity = re_po,
    error at most log 2 / beta.

    Differences: gamma = beta * gamma_beta_ratio, as in the authors' code (the paper's gamma is the product). No SFT
    term and no label smoothing; TRL 1.16 offers both behind `CPOTrainer(loss_type="simpo")`, whose default adds
    `cpo_alpha=1` of NLL unless it is set to 0.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2405.14734"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=False, lengths=True)
    search_space: ClassVar[SearchSpace] = {"beta": (2.0, 3.5, 6.0, 10.0)}
    learning_rates: ClassVar[LearningRates] = LearningRates(3e-7, 1e-6, "arXiv:2405.14734 (3e-7 to 1e-6)")
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "princeton-nlp/SimPO scripts/simpo_trainer.py@1b3e8f3", "2026-11-29"
    )

    beta: float = 2.0  # reward per (nat/token); useful range 2 to 10, far above DPO's 0.1
    gamma_beta_ratio: float = 0.5  # target margin in nats/token; 0.1 to 0.8

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, gamma_beta_ratio=-math.inf < self.gamma_beta_ratio < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        margin = logps.chosen.mean - logps.rejected.mean
        return LossOutput(
            loss=-F.logsigmoid(self.beta * (margin - self.gamma_beta_ratio)),
            chosen_reward=(self.beta * logps.chosen.mean).detach(),
            rejected_reward=(self.beta * logps.rejected.mean).detach(),
        )
