"""SLiC-HF: Sequence Likelihood Calibration with Human Feedback (Zhao et al., 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class SLiCHF:
    r"""Hinge on the difference of log-probs, plus likelihood.

    L = max(0, delta - log pi(y_w|x) + log pi(y_l|x)) - lambda * log pi(y_w|x)

    Value at policy = reference: none, it has no reference.

    Identities: slic_hf(lam=0) at lengths 1 = re_po(gamma=delta).

    Differences: the paper's likelihood term is on a separate target y_ref; here, as in HALOs, it is on the chosen side.
    TRL 1.16's `loss_type="hinge"` under this paper's name has a reference and no likelihood term: it is `hinge`.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2305.10425"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=False)
    finite_optimum: ClassVar[bool] = True
    search_space: ClassVar[SearchSpace] = {"delta": (0.5, 1.0, 3.0, 10.0)}
    chosen_rises: ClassVar[bool] = True
    learning_rates: ClassVar[LearningRates] = LearningRates(3e-7, 1e-6, "arXiv:2405.14734, appendix (3e-7 to 1e-6)")
    audit: ClassVar[Audit] = Audit(
        Level.DERIVED,
        "arXiv:2305.10425, the calibration loss; ContextualAI/HALOs train/trainers.py@4831988",
        "2026-11-30",
    )

    delta: float = 1.0  # margin of the hinge, nats; useful range 0.5 to 10
    lam: float = 0.1  # lambda, weight of the likelihood, nats per nat; useful range 0 to 1

    def __post_init__(self) -> None:
        require(self, delta=0 <= self.delta < math.inf, lam=0 <= self.lam < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = logps.chosen.sum, logps.rejected.sum
        return LossOutput(
            loss=F.relu(self.delta - (chosen - rejected)) - self.lam * chosen,
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
            metrics={"nll": -logps.chosen.sum.detach()},
        )
