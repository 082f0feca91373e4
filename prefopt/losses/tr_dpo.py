"""TR-DPO: Learn Your Reference Model for Real Good Alignment (Gorbatovski et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class TRDPO:
    r"""DPO with a reference that follows the policy.

    L = -log sigmoid(beta * (rho_w - rho_l)),   every tau steps: pi_ref <- alpha * pi + (1 - alpha) * pi_ref

    Value at policy = reference: log 2.

    Identities: tr_dpo(beta=0.3) = dpo(beta=0.3).

    Differences: none in the loss. alpha = 1 is the paper's hard update. In TRL 1.16 this is `sync_ref_model=True` with
    `ref_model_mixup_alpha` and `ref_model_sync_steps`, whose defaults are those here.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2404.09656"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, moving_reference=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.05, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(Level.SECONDARY, "TRL 1.16.0 trl/trainer/callbacks.py", "2026-11-29")
    learning_rates: ClassVar[LearningRates] = LearningRates(
        1e-6, 1e-6, "arXiv:2404.09656, Table 2, as in TRL's paper index"
    )

    beta: float = 0.05  # reward per nat of log-ratio; useful range 0.01 to 1
    alpha: float = 0.6  # share of the policy in the new reference; useful range 0.5 to 0.8 (soft), 1 (hard), above 0
    tau: int = 512  # optimizer steps between updates; useful range 64 to 1024, at least 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, alpha=0 < self.alpha <= 1, tau=self.tau >= 1)

    @property
    def reference_update(self) -> tuple[float, int]:
        """(alpha, tau): the policy's share in the new reference, and the steps between updates."""
        return self.alpha, self.tau

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        return LossOutput(
            loss=-F.logsigmoid(chosen - rejected),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> float:
        return math.log(2)
