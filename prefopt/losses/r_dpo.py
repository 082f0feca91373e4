"""R-DPO: Disentangling Length from Quality in Direct Preference Optimization (Park et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class RDPO:
    r"""DPO with a penalty per token.

    L = -log sigmoid(beta * (rho_w - rho_l) + alpha * (n_w - n_l)),   rho = log pi - log pi_ref

    The sign: maximising E[r - alpha * n] - beta * KL gives pi = pi_ref * exp((r - alpha * n) / beta) / Z, hence r =
    beta * rho + alpha * n + const, and Bradley-Terry on r is the line above. A longer winner then has less to learn
    from: the gradient's weight falls with n_w - n_l.

    Value at policy = reference: log(1 + exp(-alpha * (n_w - n_l))), log 2 at equal lengths.

    Identities: r_dpo(alpha=0.0) = dpo.

    Differences: several papers and implementations have a minus, which rewards length instead.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2403.19159"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, lengths=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    learning_rates: ClassVar[LearningRates] = LearningRates(3e-7, 1e-6, "arXiv:2405.14734, appendix (3e-7 to 1e-6)")
    audit: ClassVar[Audit] = Audit(Level.DERIVED, "arXiv:2403.19159, the reward with a length penalty", "2026-11-29")

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1
    alpha: float = 0.05  # penalty, in reward per token; useful range 0 (which is `dpo`) to 0.1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, alpha=0 <= self.alpha < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        return LossOutput(
            loss=-F.logsigmoid(chosen - rejected + self._price(logps)),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def _price(self, logps: PairLogps) -> Tensor:
        return self.alpha * (logps.chosen.num_tokens - logps.rejected.num_tokens).to(logps.chosen.sum.dtype)

    def at_reference(self, logps: PairLogps, /) -> Tensor:
        return -F.logsigmoid(self._price(logps))
