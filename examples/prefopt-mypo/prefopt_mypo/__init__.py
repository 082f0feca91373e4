"""MyPO: DPO with a saturating margin, an example of a loss in another package."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from prefopt.plugin import Data, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class MyPO:
    r"""Bradley-Terry loss on a margin that saturates at a cap.

    L = -log sigmoid(cap * tanh(beta * (rho_w - rho_l) / cap)),   rho = log pi(y|x) - log pi_ref(y|x)

    Value at policy = reference: log 2.

    Differences: an example, from no paper. As cap goes to infinity, it becomes `dpo`.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2305.18290"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}  # what a comparison tries

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1
    cap: float = 4.0  # largest margin, in units of reward; useful range 2 to 10

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, cap=0 < self.cap < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        return LossOutput(
            loss=-F.logsigmoid(self.cap * ((chosen - rejected) / self.cap).tanh()),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> float:
        return math.log(2)
