"""Sequence-level unlikelihood, a baseline of Direct Preference Optimization (Rafailov et al., 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

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
    require,
)


@dataclass(frozen=True, kw_only=True)
class Unlikelihood:
    r"""Raises the likelihood of the chosen side and lowers that of the rejected side.

    L = -log pi(y_w|x) + alpha * log pi(y_l|x)     (Sec. 6, baselines)

    Value at policy = reference: none, it has no reference.

    Identities: unlikelihood(alpha=0) = n sft.

    Differences: not the token form -sum_t log(1 - p_t) of Welleck et al. (1908.04319). Unbounded below: the rejected
    side can fall without limit. The paper gives alpha in [0, 1] (Sec. 6, methods) and sweeps it, with no single value;
    the default is ours.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2305.18290"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=False)
    search_space: ClassVar[SearchSpace] = {"alpha": (0.01, 0.03, 0.1, 0.3)}
    ranking: ClassVar[Ranking] = Ranking.POINTWISE
    chosen_rises: ClassVar[bool] = True
    audit: ClassVar[Audit] = Audit(Level.SECONDARY, "arXiv:2305.18290, Sec. 6, methods", "2026-11-29")
    learning_rates: ClassVar[LearningRates] = LearningRates(
        1e-6, 1e-6, "as dpo in the same paper, arXiv:2305.18290, App. B"
    )

    alpha: float = 0.1  # weight of the rejected side, nats per nat; useful range 0 to 0.3, at most 1

    def __post_init__(self) -> None:
        require(self, alpha=0 <= self.alpha <= 1)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = logps.chosen.sum, logps.rejected.sum
        return LossOutput(
            loss=-chosen + self.alpha * rejected,
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
        )
