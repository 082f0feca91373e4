"""BCO: Binary Classifier Optimization for Large Language Model Alignment (Jung et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from prefopt.plugin import (
    Audit,
    Data,
    LossOutput,
    Needs,
    PairLogps,
    Ranking,
    SearchSpace,
    State,
    UnpairedLogps,
    require,
)


@dataclass(frozen=True, kw_only=True)
class BCO:
    r"""Binary classification of desirable and undesirable completions; the threshold is the running mean reward.

    L = -log sigmoid(r - delta)     desirable
    L = -log sigmoid(delta - r)     undesirable,   r = beta * rho,   rho = log pi(y|x) - log pi_ref(y|x)
    delta = mean of r over all items seen so far, this batch included, without gradient

    Value at policy = reference: log 2.

    Identities: bco where the mean reward is 0, both items of a pair = bco_pair.

    Differences: each global batch is counted once (TRL updates delta per micro-batch, so its loss depends on the
    split). The paper's delta is (E[r | desirable] + E[r | undesirable]) / 2, which equals the running mean, TRL's and
    this one, where labels are balanced. The paper's density-ratio weights for prompts are not implemented.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2404.04656"
    needs: ClassVar[Needs] = Needs(data=Data.UNPAIRED, reference=True, coupled=True, state=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit.SECONDARY

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def initial_state(self) -> State:
        return {"delta": torch.zeros((), dtype=torch.float64), "count": torch.zeros((), dtype=torch.float64)}

    def __call__(self, logps: UnpairedLogps, state: State, /) -> LossOutput:
        reward = self.beta * logps.completion.ratio
        seen = reward.detach().cpu().double()
        count = state["count"] + len(seen)
        delta = state["delta"] + (seen - state["delta"]).sum() / count
        above = reward - delta.to(reward)
        return LossOutput(
            loss=-F.logsigmoid(torch.where(logps.desirable, above, -above)),
            reward=reward.detach(),
            metrics={"delta": delta},
            state={"delta": delta, "count": count},
        )

    def at_reference(self, logps: UnpairedLogps, /) -> float:
        return math.log(2)


@dataclass(frozen=True, kw_only=True)
class BCOPair:
    r"""BCO on pairs, with a threshold of 0.

    L = -log sigmoid(beta * rho_w) - log sigmoid(-beta * rho_l),   rho = log pi(y|x) - log pi_ref(y|x)

    Value at policy = reference: 2 log 2.

    Differences: this is TRL's `loss_type="bco_pair"` since 1.0; before, and in the code of MPO (2411.10442), a running
    delta was subtracted. TRL's index of papers gives beta = 0.01.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2404.04656"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    ranking: ClassVar[Ranking] = Ranking.POINTWISE
    audit: ClassVar[Audit] = Audit.SECONDARY

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        return LossOutput(
            loss=-F.logsigmoid(chosen) - F.logsigmoid(-rejected),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> float:
        return 2 * math.log(2)
