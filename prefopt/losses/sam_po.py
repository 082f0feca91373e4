"""SamPO: Eliminating Biased Length Reliance of DPO via Down-Sampled KL Divergence (Lu et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.losses._numerics import uniform
from prefopt.plugin import Audit, Data, LearningRates, Level, Logps, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class SamPO:
    r"""DPO with the longer side's tokens down-sampled to the length of the shorter side.

    L = -log sigmoid(beta * (sum over S_w of rho_t - sum over S_l of rho_t)), |S_w| = |S_l| = min(n_w, n_l) rho_t = log
    pi(y_t|...) - log pi_ref(y_t|...); S is drawn uniformly without replacement

    Value at policy = reference: log 2.

    Identities: sam_po at equal lengths = dpo.

    Differences: policy and reference share the drawn positions (the authors' code draws them separately, so that even
    at policy = reference the loss is noise around log 2). The draw depends on the record's id alone, so it is the same
    in each epoch.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2406.10957"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, lengths=True, tokens=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(Level.AUTHORS_CODE, "LuJunru/SamPO dpo_trainer.py@25e9631", "2026-11-29")
    learning_rates: ClassVar[LearningRates] = LearningRates(4e-7, 1e-6, "LuJunru/SamPO dpo.sh@8b409a4")

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        if logps.ids is None:
            raise ValueError("sam_po draws by record id: this batch has no ids")
        count = torch.minimum(logps.chosen.num_tokens, logps.rejected.num_tokens)
        chosen = self.beta * _sampled(logps.chosen, logps.ids, count, salt=0)
        rejected = self.beta * _sampled(logps.rejected, logps.ids, count, salt=1)
        return LossOutput(
            loss=-F.logsigmoid(chosen - rejected),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> float:
        return math.log(2)


def _sampled(side: Logps, ids: Tensor, count: Tensor, salt: int) -> Tensor:
    """(B,) log-ratio summed over the `count` positions with the smallest draws."""
    ratio = side.per_token - side.ref_per_token
    draws = uniform(ids.unsqueeze(-1), torch.arange(ratio.shape[-1]), salt).to(ratio.device)
    place = draws.masked_fill(~side.mask, math.inf).argsort(-1).argsort(-1)
    return (ratio * (place < count.unsqueeze(-1))).sum(-1)
