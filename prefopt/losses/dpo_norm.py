"""Length-normalized DPO: Tulu 3, Pushing Frontiers in Open Language Model Post-Training (Lambert et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class DPONorm:
    r"""DPO on log-ratios per token.

    L = -log sigmoid(beta * (rho_w / n_w - rho_l / n_l)),   rho = log pi(y|x) - log pi_ref(y|x)

    Value at policy = reference: log 2.

    Identities: dpo_norm with a zero reference = simpo(gamma_beta_ratio=0).

    Differences: none from the paper or TRL 1.16 (`loss_type="sigmoid_norm"`).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2411.15124"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, lengths=True)
    search_space: ClassVar[SearchSpace] = {"beta": (2.0, 5.0, 10.0, 15.0)}
    audit: ClassVar[Audit] = Audit(Level.SECONDARY, "TRL 1.16.0 trl/trainer/dpo_trainer.py", "2026-11-29")
    learning_rates: ClassVar[LearningRates] = LearningRates(
        5e-7, 5e-7, "allenai/open-instruct docs/tulu3.md@0becd2c (2e-7 at 70B)"
    )

    beta: float = 5.0  # reward per (nat/token); useful range 2 to 15, far above DPO's 0.1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen = self.beta * (logps.chosen.mean - logps.chosen.ref_mean)
        rejected = self.beta * (logps.rejected.mean - logps.rejected.ref_mean)
        return LossOutput(
            loss=-F.logsigmoid(chosen - rejected),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> float:
        return math.log(2)
