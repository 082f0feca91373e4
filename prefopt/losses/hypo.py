"""HyPO (Hybrid-DPO): Mitigating Mismatch within Reference-based Preference Optimization (Yuan et al., 2026)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from prefopt.plugin import Audit, Data, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class HyPO:
    r"""DPO that subtracts the reference's margin only where the reference agrees with the label.

    L = -log sigmoid(beta * (d - max(0, d_ref))),   d = log pi(y_w|x) - log pi(y_l|x)

    Value at policy = reference: log(1 + exp(beta * max(0, -d_ref))), log 2 where the reference agrees.

    Identities: hypo where d_ref > 0 = dpo; hypo where d_ref < 0 = cpo(alpha=0).

    Differences: none from the paper, which keeps DPO's beta; its default here is DPO's. The paper's variant with a
    threshold other than 0 is not implemented.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2602.11902"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(Level.SECONDARY, "accounts of arXiv:2602.11902", "2026-11-29")

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        margin = logps.chosen.sum - logps.rejected.sum
        reference = logps.chosen.reference - logps.rejected.reference
        return LossOutput(
            loss=-F.logsigmoid(self.beta * (margin - F.relu(reference))),
            chosen_reward=(self.beta * logps.chosen.ratio).detach(),
            rejected_reward=(self.beta * logps.rejected.ratio).detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> Tensor:
        reference = logps.chosen.reference - logps.rejected.reference
        return F.softplus(self.beta * F.relu(-reference))
