"""D2PO: Direct Preference Optimization with temporal decay (Shao et al., 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.plugin import Audit, Data, LearningRates, Level, Logps, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class D2PO:
    r"""DPO whose tokens weigh less the later they come.

    L = -log sigmoid(beta * (R_w - R_l)),   R = sum over t from 0 of gamma^t * rho_t
    rho_t = log pi(y_t|...) - log pi_ref(y_t|...)

    Value at policy = reference: log 2.

    Identities: d2po(gamma=1.0) = dpo.

    Differences: in the authors' code the first token has the weight gamma, not 1, which is beta * gamma here.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2502.14340"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, tokens=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "LotuSrc/D2PO src/llamafactory/train/trainer_utils.py@ec6c9db", "2026-11-30"
    )
    learning_rates: ClassVar[LearningRates] = LearningRates(
        5e-6, 5e-6, "LotuSrc/D2PO examples/exp/llama3_full_d2po.yaml@ec6c9db"
    )

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1
    gamma: float = 0.98  # weight of a token relative to the one before, no unit; useful range 0.9 to 1 (which is `dpo`)

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, gamma=0 < self.gamma <= 1)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = (self.beta * self._decayed(side) for side in (logps.chosen, logps.rejected))
        return LossOutput(
            loss=-F.logsigmoid(chosen - rejected),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def _decayed(self, side: Logps) -> Tensor:
        policy, reference = side.per_token, side.ref_per_token
        ratio = (policy - reference) if policy.dtype == torch.float64 else policy.float() - reference.float()
        return (ratio * self.gamma ** torch.arange(ratio.shape[-1], device=ratio.device)).sum(-1)

    def at_reference(self, logps: PairLogps, /) -> float:
        return math.log(2)
