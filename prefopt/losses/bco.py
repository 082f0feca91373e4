"""BCO: Binary Classifier Optimization for Large Language Model Alignment (Jung et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.plugin import (
    Audit,
    Data,
    LearningRates,
    Level,
    LossOutput,
    Needs,
    PairLogps,
    Ranking,
    SearchSpace,
    State,
    UnpairedLogps,
    require,
)


class Threshold(Enum):
    """The threshold delta between desirable and undesirable completions, from running mean rewards."""

    BALANCED = "balanced"  # (mean over desirable + mean over undesirable) / 2, the paper's
    POOLED = "pooled"  # mean over all items, that of TRL


@dataclass(frozen=True, kw_only=True)
class BCO:
    r"""Binary classification of desirable and undesirable completions; the threshold follows the mean rewards.

    L = -log sigmoid(r - delta)     desirable
    L = -log sigmoid(delta - r)     undesirable,   r = beta * rho,   rho = log pi(y|x) - log pi_ref(y|x)
    delta = (E[r | desirable] + E[r | undesirable]) / 2, means over all items so far with this batch, without gradient

    Value at policy = reference: log 2.

    Identities: bco where the mean reward is 0, both items of a pair = bco_pair_zero; bco, both items of a pair =
    bco_pair.

    Differences: the paper computes delta as an exponential moving average, whose rate it leaves open; the means here
    are over all items, as in its author's code in TRL. Density-ratio weights for prompts are not implemented. Each
    global batch is counted once, whatever its micro-batches. Until both labels were seen, delta is the mean of the one
    seen.
    `threshold=pooled` is the mean over all items, as in the earlier `BCOTrainer` of TRL (TRL 1.16 has none), which
    updated it per micro-batch; it is the same where labels are balanced.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2404.04656"
    needs: ClassVar[Needs] = Needs(data=Data.UNPAIRED, reference=True, coupled=True, state=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(Level.DERIVED, "arXiv:2404.04656, Eqs. 7 and 8", "2026-11-30")
    learning_rates: ClassVar[LearningRates] = LearningRates(
        5e-7, 5e-7, "arXiv:2404.04656, App. C, as in TRL's paper_index.md@0167b7d"
    )

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1
    threshold: Threshold = Threshold.BALANCED  # balanced (the paper's) or pooled (TRL's)

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def initial_state(self) -> State:
        return {"means": torch.zeros(2, dtype=torch.float64), "counts": torch.zeros(2, dtype=torch.float64)}

    def __call__(self, logps: UnpairedLogps, state: State, /) -> LossOutput:
        reward = self.beta * logps.completion.ratio
        seen, labels = reward.detach().cpu().double(), logps.desirable.long().cpu()
        counts = state["counts"] + labels.bincount(minlength=2)
        means = state["means"].index_add(0, labels, (seen - state["means"][labels]) / counts[labels])
        weights = counts if self.threshold is Threshold.POOLED else (counts > 0).double()
        delta = (means * weights).sum() / weights.sum()
        above = reward - delta.to(reward)
        return LossOutput(
            loss=-F.logsigmoid(torch.where(logps.desirable, above, -above)),
            reward=reward.detach(),
            metrics={"delta": delta},
            state={"means": means, "counts": counts},
        )

    def at_reference(self, logps: UnpairedLogps, /) -> float:
        return math.log(2)


@dataclass(frozen=True, kw_only=True)
class BCOPair:
    r"""BCO on pairs.

    L = -log sigmoid(r_w - delta) - log sigmoid(delta - r_l),   r = beta * rho,   rho = log pi(y|x) - log pi_ref(y|x)
    delta = mean of r over both sides of all pairs so far, this batch included, without gradient

    Value at policy = reference: 2 log 2.

    Differences: none from the author's contribution to TRL (`loss_type="bco_pair"`, up to 0.28), from LLaMA-Factory
    (`pref_bco_weight`) and from the code of MPO (2411.10442), except that each global batch is counted once; they
    update delta per micro-batch. In TRL from 0.29 on, delta is 0, which is `bco_pair_zero`.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2404.04656"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, coupled=True, state=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    ranking: ClassVar[Ranking] = Ranking.POINTWISE
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "huggingface/trl trl/trainer/dpo_trainer.py@c050ebc", "2026-11-29"
    )
    learning_rates: ClassVar[LearningRates] = LearningRates(
        5e-7, 5e-7, "arXiv:2404.04656, App. C, as in TRL's paper_index.md@0167b7d"
    )

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def initial_state(self) -> State:
        return {"delta": torch.zeros((), dtype=torch.float64), "count": torch.zeros((), dtype=torch.float64)}

    def __call__(self, logps: PairLogps, state: State, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        seen = torch.cat([chosen, rejected]).detach().cpu().double()
        count = state["count"] + len(seen)
        delta = state["delta"] + (seen - state["delta"]).sum() / count
        return LossOutput(
            loss=_both_sides(chosen - delta.to(chosen), rejected - delta.to(rejected)),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
            metrics={"delta": delta},
            state={"delta": delta, "count": count},
        )

    def at_reference(self, logps: PairLogps, /) -> float:
        return 2 * math.log(2)


@dataclass(frozen=True, kw_only=True)
class BCOPairZero:
    r"""BCO on pairs, with a threshold of 0.

    L = -log sigmoid(beta * rho_w) - log sigmoid(-beta * rho_l),   rho = log pi(y|x) - log pi_ref(y|x)

    Value at policy = reference: 2 log 2.

    Differences: this is `loss_type="bco_pair"` of TRL from 0.29 on; the author's has a running threshold (`bco_pair`).
    TRL's index of papers gives beta = 0.01.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2404.04656"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    ranking: ClassVar[Ranking] = Ranking.POINTWISE
    audit: ClassVar[Audit] = Audit(Level.SECONDARY, "TRL 1.16.0 trl/trainer/dpo_trainer.py", "2026-11-29")
    learning_rates: ClassVar[LearningRates] = LearningRates(5e-7, 5e-7, "as bco_pair")

    beta: float = 0.1  # reward per nat of log-ratio; useful range 0.01 to 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = self.beta * logps.chosen.ratio, self.beta * logps.rejected.ratio
        return LossOutput(
            loss=_both_sides(chosen, rejected),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> float:
        return 2 * math.log(2)


def _both_sides(chosen: Tensor, rejected: Tensor) -> Tensor:
    return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)
