"""Robust DPO: Provably Robust DPO, Aligning Language Models with Noisy Feedback (Chowdhury et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from prefopt.plugin import Audit, Data, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class RobustDPO:
    r"""DPO made unbiased for labels that are flipped with probability epsilon.

    L = [(1 - epsilon) * l(z) - epsilon * l(-z)] / (1 - 2 epsilon),
        l(z) = -log sigmoid(z),   z = beta * (rho_w - rho_l)

    Its mean over flips at rate epsilon is `dpo` on the clean labels:
    (1 - epsilon) L(z) + epsilon L(-z) = [(1 - epsilon)^2 - epsilon^2] / (1 - 2 epsilon) l(z) = l(z).

    Value at policy = reference: log 2.

    Identities: robust_dpo(label_smoothing=0.0) = dpo; robust_dpo = dpo - epsilon / (1 - 2 epsilon) beta Delta; mean of
    robust_dpo over flips at rate epsilon = dpo on clean labels.

    Differences: none from the paper or TRL 1.16 (`loss_type="robust"`). The minus is right: with a plus it is `cdpo`
    over (1 - 2 epsilon). Unbounded below, by -epsilon / (1 - 2 epsilon) * z.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2403.00409"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(
        Level.DERIVED, "arXiv:2403.00409, the unbiased estimate; TRL 1.16.0 trl/trainer/dpo_trainer.py", "2026-11-30"
    )

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1
    label_smoothing: float = 0.1  # epsilon, probability of a flipped label; useful range 0 to 0.4, below 0.5

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, label_smoothing=0 <= self.label_smoothing < 0.5)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        margin = chosen - rejected
        # Since l(-z) = l(z) + z, the fraction is l(z) - epsilon / (1 - 2 epsilon) z: no cancelling of large terms.
        loss = -F.logsigmoid(margin) - self.label_smoothing / (1 - 2 * self.label_smoothing) * margin
        return LossOutput(loss=loss, chosen_reward=chosen.detach(), rejected_reward=rejected.detach())

    def at_reference(self, logps: PairLogps, /) -> float:
        return math.log(2)
