"""SimPER: A Minimalist Approach to Preference Alignment without Hyperparameters (Xiao et al., 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, Ranking, SearchSpace


@dataclass(frozen=True, kw_only=True)
class SimPER:
    r"""Difference of inverse perplexities.

    L = p_l - p_w,   p = exp(log pi(y|x) / n)

    Value at policy = reference: none, it has no reference.

    Differences: none from the paper. The gradient on a side is its p / n: it vanishes where p is small, so start from
    an SFT model.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2502.00883"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=False, lengths=True)
    search_space: ClassVar[SearchSpace] = {}  # no strength to search: learning rates instead
    ranking: ClassVar[Ranking] = Ranking.POINTWISE
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "tengxiao1/SimPER scripts/simper_trainer.py@db08c97", "2026-11-30"
    )
    learning_rates: ClassVar[LearningRates] = LearningRates(3e-7, 1e-6, "tengxiao1/SimPER training_configs@7c9ae9e")

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = logps.chosen.mean.exp(), logps.rejected.mean.exp()
        return LossOutput(loss=rejected - chosen, chosen_reward=chosen.detach(), rejected_reward=rejected.detach())
