"""LD-DPO: Length Desensitization in Direct Preference Optimization (Liu et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.plugin import Audit, Data, Level, Logps, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class LDDPO:
    r"""DPO with a smaller weight on tokens past the shorter side's length.

    L = -log sigmoid(beta * (R_w - R_l)),   R = sum over t <= m of rho_t + alpha * sum over t > m of rho_t
    m = min(n_w, n_l),   rho_t = log pi(y_t|...) - log pi_ref(y_t|...)

    Value at policy = reference: log 2.

    Identities: ld_dpo(alpha=1.0) = dpo.

    Differences: none from the paper or TRL 1.16 (`ld_alpha`). LLaMA-Factory's `ld_alpha` weights only the policy's
    tokens, not the reference's, so its loss is not log 2 at policy = reference.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2409.06411"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, lengths=True, tokens=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(
        Level.DERIVED,
        "arXiv:2409.06411, the decomposed likelihood; TRL 1.16.0 trl/trainer/dpo_trainer.py",
        "2026-11-30",
    )

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1
    alpha: float = 0.5  # weight of a token past the shorter side, no unit; useful range 0 to 1 (which is `dpo`)

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, alpha=0 <= self.alpha <= 1)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        shared = torch.minimum(logps.chosen.num_tokens, logps.rejected.num_tokens)
        chosen, rejected = (self.beta * self._weighted(side, shared) for side in (logps.chosen, logps.rejected))
        return LossOutput(
            loss=-F.logsigmoid(chosen - rejected),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def _weighted(self, side: Logps, shared: Tensor) -> Tensor:
        ratio = side.per_token - side.ref_per_token
        past = torch.arange(ratio.shape[-1], device=ratio.device) >= shared.unsqueeze(-1)
        weight = side.mask * torch.where(past, self.alpha, 1.0)
        return (ratio * weight.to(ratio.dtype)).sum(-1)

    def at_reference(self, logps: PairLogps, /) -> float:
        return math.log(2)
