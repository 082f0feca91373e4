"""beta-DPO: Direct Preference Optimization with Dynamic beta (Wu et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.losses._numerics import uniform
from prefopt.losses._running import initial_moments, update_moments, z_score
from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, State, require


@dataclass(frozen=True, kw_only=True)
class BetaDPO:
    r"""DPO on a filtered batch, with a beta that follows the batch's mean margin.

    L = -log sigmoid(beta_b * Delta) on the kept pairs,   Delta = rho_w - rho_l,   rho = log pi - log pi_ref
    beta_b = max(0.001, beta * (1 + alpha * (mean of Delta over the kept pairs - M))), without gradient
    kept: a share `keep` of the batch, drawn without replacement with weights exp(-((Delta - M) / S)^2 / 2)
    M, S: moving averages of the batch mean and deviation of Delta, updated before use

    Value at policy = reference: log 2 on average over the batch: log 2 * B / kept on a kept pair, 0 on the others.

    Identities: beta_dpo(alpha=0.0, keep=1.0) = dpo.

    Differences: M and S are updated once per global batch and corrected for their start, so that the first batch has
    its own mean and deviation; the authors' code updates them from 0 in each forward. The draw depends only on the
    record's id and the number of batches so far, so it is the same on any number of processes. With S = 0, as at step
    0, all weights are equal (the authors' code divides 0 by 0). The number of kept pairs is rounded down, to at least
    1. Logged rewards have the base beta, as in the authors' code.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2407.08639"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, coupled=True, state=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(Level.AUTHORS_CODE, "junkangwu/beta-DPO trainers.py@1629047", "2026-11-29")
    learning_rates: ClassVar[LearningRates] = LearningRates(
        5e-7, 5e-7, "junkangwu/beta-DPO config/config.yaml@6f5ef7c (RMSprop)"
    )

    beta: float = 0.1  # beta at the average margin, reward per nat of log-ratio; useful range 0.01 to 1
    alpha: float = 0.6  # growth of beta, per nat of margin; useful range 0 to 1
    keep: float = 0.8  # share of the batch that is kept; useful range 0.6 to 1 (no filter), above 0
    decay: float = 0.9  # of the moving averages, per batch; useful range 0.5 to 0.99, below 1

    def __post_init__(self) -> None:
        require(
            self,
            beta=0 < self.beta < math.inf,
            alpha=0 <= self.alpha < math.inf,
            keep=0 < self.keep <= 1,
            decay=0 <= self.decay < 1,
        )

    def initial_state(self) -> State:
        return initial_moments()

    def __call__(self, logps: PairLogps, state: State, /) -> LossOutput:
        chosen, rejected = logps.chosen.ratio, logps.rejected.ratio
        margin = chosen - rejected
        moments = update_moments(state, margin, self.decay)
        kept = self._kept(logps, z_score(margin, moments), int(state["batches"]))
        excess = margin.detach().cpu().double()[kept].mean() - moments["mean"]
        beta = (self.beta * (1 + self.alpha * excess)).clamp(min=1e-3).to(margin)
        share = kept.to(margin) * (len(margin) / int(kept.sum()))
        return LossOutput(
            loss=-F.logsigmoid(beta * margin) * share,
            chosen_reward=(self.beta * chosen).detach(),
            rejected_reward=(self.beta * rejected).detach(),
            metrics={"beta": beta, "kept": kept.to(margin)},
            state=moments,
        )

    def _kept(self, logps: PairLogps, z: Tensor, batches: int) -> Tensor:
        """(B,) bool: the draw without replacement, as the largest of log weight + Gumbel noise."""
        if logps.ids is None:
            raise ValueError("beta_dpo draws by record id: this batch has no ids")
        count = max(1, math.floor(self.keep * len(z) + 1e-9))
        noise = -torch.log(-torch.log(uniform(logps.ids, batches)))
        kept = torch.zeros_like(z, dtype=torch.bool)
        kept[(noise - z**2 / 2).topk(count).indices] = True
        return kept

    def at_reference(self, logps: PairLogps, /) -> Tensor:
        kept = self._kept(logps, torch.zeros(len(logps.chosen.sum), dtype=torch.float64), 0)
        return math.log(2) * kept.to(logps.chosen.sum) * (len(kept) / int(kept.sum()))
