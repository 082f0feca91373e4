"""Uni-DPO: A Unified Paradigm for Dynamic Preference Optimization of LLMs (Peng et al., 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class UniDPO:
    r"""Length-normalised DPO, weighed by the pair's quality and by how little of it is learnt, with SFT on the best.

    L = w_q * w_p * -log sigmoid(beta * (d - d_ref)) + lam * c * -l_w,   l = log pi(y|x) / n,   d = l_w - l_l
    w_q = sigmoid(eta * (s_w - s_l)),   w_p = (1 - sigmoid(beta * d - tau))^gamma, with gradient
    c = 1 where l_w < l_ref,w and s_w >= good_score, else 0

    Value at policy = reference: w_q * (1 - sigmoid(beta * d_ref - tau))^gamma * log 2; c is 0 there.

    Identities: uni_dpo(eta=0, gamma=0, lam=0, beta=5.0) = dpo_norm / 2.

    Differences: none from the authors' code for texts. The defaults are those of its recipe for Llama-3-8B-Base-SFT,
    whose good_score is 3.2; that has no default, since it is on the scale of the data's scores. At step 0, where
    l_w = l_ref,w, rounding would decide about c: the engine makes the tie exact, and c is 0.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2506.10054"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, lengths=True, scores=True)
    search_space: ClassVar[SearchSpace] = {"beta": (1.0, 2.0, 3.5, 6.0)}
    chosen_rises: ClassVar[bool] = True
    exceptions: ClassVar[dict[str, str]] = {
        "rounding at reference": "where l_w = l_ref,w, rounding decides about the SFT term; the engine makes it exact"
    }
    learning_rates: ClassVar[LearningRates] = LearningRates(8e-7, 2e-6, "the recipes in its repository")
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "pspdada/Uni-DPO Textual/train/scripts/uni_dpo_trainer.py@c29535e", "2026-11-30"
    )

    beta: float = 2.0  # reward per (nat/token); useful range 1 to 10
    eta: float = 0.7  # steepness of the quality weight, per unit of score; useful range 0 to 1
    tau: float = 0.8  # margin of reward at which a pair counts half, at gamma 1; useful range 0 to 2
    gamma: float = 3.0  # how fast a learnt pair fades, no unit; useful range 0 to 5
    lam: float = 0.001  # weight of the SFT term, per (nat/token); useful range 0 to 0.1
    good_score: float  # score from which SFT trains on a chosen side, in units of score: in the upper half

    def __post_init__(self) -> None:
        require(
            self,
            beta=0 < self.beta < math.inf,
            eta=0 <= self.eta < math.inf,
            tau=-math.inf < self.tau < math.inf,
            gamma=0 <= self.gamma < math.inf,
            lam=0 <= self.lam < math.inf,
            good_score=-math.inf < self.good_score < math.inf,
        )

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = logps.chosen, logps.rejected
        rewards = [self.beta * (side.mean - side.ref_mean) for side in (chosen, rejected)]
        weight = self._weight(logps, chosen.mean - rejected.mean)
        assert logps.chosen_score is not None  # `_weight` has read it
        poor = (chosen.mean < chosen.ref_mean) & (logps.chosen_score >= self.good_score)
        sft = torch.where(poor, -chosen.mean, torch.zeros_like(chosen.mean))
        return LossOutput(
            loss=-weight * F.logsigmoid(rewards[0] - rewards[1]) + self.lam * sft,
            chosen_reward=rewards[0].detach(),
            rejected_reward=rewards[1].detach(),
            metrics={"weight": weight.detach()},
        )

    def _weight(self, logps: PairLogps, margin: Tensor) -> Tensor:
        """w_q w_p at a margin of log-probs per token."""
        quality = torch.sigmoid(self.eta * logps.score_gap)
        return quality * torch.exp(self.gamma * F.logsigmoid(self.tau - self.beta * margin))

    def at_reference(self, logps: PairLogps, /) -> Tensor:
        return self._weight(logps, logps.chosen.ref_mean - logps.rejected.ref_mean) * math.log(2)
