"""AOT: Distributional Preference Alignment of LLMs via Optimal Transport (Melnyk et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from prefopt.plugin import (
    Audit,
    Data,
    Level,
    LossOutput,
    Needs,
    PairLogps,
    Ranking,
    SearchSpace,
    UnpairedLogps,
    require,
)


@dataclass(frozen=True, kw_only=True)
class AOT:
    r"""DPO between quantiles: the batch's log-prob margins, sorted, against the reference's, sorted.

    L = mean_i -log sigmoid(beta * (d_(i) - d_ref(i))),   d = log pi(y_w|x) - log pi(y_l|x),   (i) the i-th smallest

    Value at policy = reference: log 2.

    Identities: aot on one pair = dpo.

    Differences: each example has the value at the rank of its own d. The paper allows soft sorting; here it is hard, as
    in TRL 1.16 (`loss_type="aot"`), which sorts each micro-batch of each process separately.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2406.05882"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, coupled=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.01, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(Level.SECONDARY, "TRL 1.16.0 trl/trainer/dpo_trainer.py", "2026-11-29")

    beta: float = 0.01  # reward per nat of log-ratio; useful range 0.01 to 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        margin = logps.chosen.sum - logps.rejected.sum
        reference = (logps.chosen.reference - logps.rejected.reference).sort(stable=True).values
        rank = margin.argsort(stable=True).argsort()
        return LossOutput(
            loss=-F.logsigmoid(self.beta * (margin - reference[rank])),
            chosen_reward=(self.beta * logps.chosen.ratio).detach(),
            rejected_reward=(self.beta * logps.rejected.ratio).detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> float:
        return math.log(2)


@dataclass(frozen=True, kw_only=True)
class AOTUnpaired:
    r"""DPO between quantiles: sorted log-ratios of the desirable against sorted ones of the undesirable.

    L = integral over u in (0, 1) of -log sigmoid(beta * (Q_w(u) - Q_l(u))),   Q the quantiles of rho on each side
    With equal counts n this is mean_i -log sigmoid(beta * (rho_w(i) - rho_l(i))).

    Value at policy = reference: log 2, or 0 in a batch that has one label only.

    Identities: aot_unpaired on one item of each label = dpo.

    Differences: the paper and TRL 1.16 (`loss_type="aot_unpaired"`) need equal counts; with n desirable and m
    undesirable items the integral runs over the at most n + m - 1 steps of the two quantile functions. Each item's
    value is the mean over its own 1/n or 1/m of u, so that the mean over either side, hence over the batch, is the
    integral.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2406.05882"
    needs: ClassVar[Needs] = Needs(data=Data.UNPAIRED, reference=True, coupled=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.01, 0.1, 0.3, 1.0)}
    ranking: ClassVar[Ranking] = Ranking.PAIRWISE
    audit: ClassVar[Audit] = Audit(Level.SECONDARY, "TRL 1.16.0 trl/trainer/dpo_trainer.py", "2026-11-29")

    beta: float = 0.01  # reward per nat of log-ratio; useful range 0.01 to 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: UnpairedLogps, /) -> LossOutput:
        ratio = logps.completion.ratio
        good, bad = (side.nonzero().squeeze(-1) for side in (logps.desirable, ~logps.desirable))
        reward = (self.beta * ratio).detach()
        if len(good) == 0 or len(bad) == 0:
            return LossOutput(loss=ratio * 0.0, reward=reward)
        good, bad = (side[ratio[side].argsort(stable=True)] for side in (good, bad))
        n, m = len(good), len(bad)
        # Steps of both quantile functions, in whole units of 1/(n m): no rounding decides which step a point is in.
        ends = torch.unique(torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]))
        widths = torch.diff(ends, prepend=ends.new_zeros(1))
        which_good, which_bad = (ends - 1) // m, (ends - 1) // n
        step = -F.logsigmoid(self.beta * (ratio[good[which_good]] - ratio[bad[which_bad]]))
        widths = widths.to(step)
        loss = torch.zeros_like(ratio)
        loss = loss.index_add(0, good[which_good], step * widths / m)
        loss = loss.index_add(0, bad[which_bad], step * widths / n)
        return LossOutput(loss=loss, reward=reward)

    def at_reference(self, logps: UnpairedLogps, /) -> float:
        both = bool(logps.desirable.any()) and not bool(logps.desirable.all())
        return math.log(2) if both else 0.0
