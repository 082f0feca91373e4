"""SFT: maximum likelihood on demonstrations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prefopt.plugin import Audit, Data, DemoLogps, LearningRates, Level, LossOutput, Needs, SearchSpace


@dataclass(frozen=True, kw_only=True)
class SFT:
    r"""Negative log-likelihood per token of each demonstration.

    L = -log pi(y|x) / |y|     (cross-entropy with the prompt masked; Ouyang et al. 2022, step 1 of Sec. 3.1)

    Value at policy = reference: none, it has no reference.

    Differences: the mean is over a demonstration's own tokens, then over demonstrations, so that an example's value
    does not depend on its batch. TRL 1.16 averages over all tokens of the batch, which is `sft_token_mean`.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2203.02155"
    needs: ClassVar[Needs] = Needs(data=Data.DEMONSTRATIONS, reference=False, lengths=True)
    search_space: ClassVar[SearchSpace] = {}  # no strength to search: learning rates instead
    chosen_rises: ClassVar[bool] = True
    learning_rates: ClassVar[LearningRates] = LearningRates(1e-6, 2e-5, "arXiv:2310.16944 (2e-5)")
    audit: ClassVar[Audit] = Audit(
        Level.DERIVED, "arXiv:2203.02155, Sec. 3.1; TRL 1.16.0 trl/trainer/sft_trainer.py", "2026-11-30"
    )

    def __call__(self, logps: DemoLogps, /) -> LossOutput:
        return LossOutput(loss=-logps.chosen.mean)


@dataclass(frozen=True, kw_only=True)
class SFTTokenMean:
    r"""Negative log-likelihood averaged over all tokens of the global batch, so that longer demonstrations weigh more.

    L_i = -log pi(y_i|x_i) * B / sum_j |y_j|, whose mean over the B demonstrations is the mean over tokens

    Value at policy = reference: none, it has no reference.

    Identities: sft_token_mean at equal lengths = sft.

    Differences: this is TRL 1.16's loss, over the global batch whatever the micro-batches and processes.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2203.02155"
    needs: ClassVar[Needs] = Needs(data=Data.DEMONSTRATIONS, reference=False, lengths=True, coupled=True)
    search_space: ClassVar[SearchSpace] = {}  # no strength to search: learning rates instead
    chosen_rises: ClassVar[bool] = True
    audit: ClassVar[Audit] = Audit(Level.SECONDARY, "TRL 1.16.0 trl/trainer/sft_trainer.py", "2026-11-29")
    learning_rates: ClassVar[LearningRates] = LearningRates(1e-6, 2e-5, "as sft")

    def __call__(self, logps: DemoLogps, /) -> LossOutput:
        return LossOutput(loss=-logps.chosen.sum * len(logps.chosen.sum) / logps.chosen.num_tokens.sum())
