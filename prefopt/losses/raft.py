"""RAFT: Reward-rAnked Fine-Tuning on the best of a prompt's samples (Dong et al., 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prefopt.losses._rollouts import TIE
from prefopt.plugin import (
    Audit,
    Data,
    LearningRates,
    Level,
    ListLogps,
    LossOutput,
    Needs,
    Ranking,
    SearchSpace,
    require,
)


@dataclass(frozen=True, kw_only=True)
class RAFT:
    r"""Maximum likelihood on the best of K samples of each prompt, by the reward less its KL to the reference.

    L = -log pi(y_best|x) / |y_best|,   best = argmax_k r_k - beta rho_k,   rho_k without gradient

    Value at policy = reference: minus the mean log-prob per token of the completion with the largest reward.

    Identities: raft(beta=0.0) = sft on the completion with the largest score.

    Fixed points: on own samples pi_ref exp(r / beta) / Z, the optimum of RLHF, for texts of one length: there all
    samples of a prompt tie, and share the weight. With beta = 0, all weight on the best texts.

    Differences: beta = 0 is Algorithm 1; on own samples `sft` is the same at a lower cost, for its forward has the best
    sample only. The paper has one reference for a stage of many steps, and a mean over all tokens of a batch. The
    authors' code (LMFlow) trains on the prompts, too, and keeps the best fifth of all prompts' samples, one of each.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2304.06767"
    needs: ClassVar[Needs] = Needs(data=Data.LISTS, reference=True, lengths=True, scores=True)
    ranking: ClassVar[Ranking] = Ranking.POINTWISE
    chosen_rises: ClassVar[bool] = True
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    learning_rates: ClassVar[LearningRates] = LearningRates(1e-6, 2e-5, "as sft")
    audit: ClassVar[Audit] = Audit(
        Level.SECONDARY, "OptimalScale/LMFlow src/lmflow/pipeline/raft_aligner.py@0128b9c", "2026-11-30"
    )

    beta: float = 0.1  # reward per nat of log-ratio; 0 or above, useful range 0.01 to 1

    def __post_init__(self) -> None:
        require(self, beta=0 <= self.beta < math.inf)

    def __call__(self, logps: ListLogps, /) -> LossOutput:
        weight = self._best(logps, logps.scores - self.beta * logps.completions.ratio.detach())
        return LossOutput(loss=-(weight * logps.completions.mean).sum(-1))

    def at_reference(self, logps: ListLogps, /) -> Tensor:
        reference = logps.completions.reference / logps.completions.num_tokens.clamp(min=1)
        return -(self._best(logps, logps.scores) * reference).sum(-1)

    def _best(self, logps: ListLogps, reward: Tensor) -> Tensor:
        """(B, K) 1 for the best completion; those that tie share it."""
        most = torch.where(logps.mask, reward, -math.inf).amax(-1, keepdim=True)
        best = (logps.mask & (reward >= most - TIE * most.abs())).to(reward.dtype)
        return best / best.sum(-1, keepdim=True)
