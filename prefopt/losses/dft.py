"""DFT: On the Generalization of SFT (Wu et al., 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prefopt.plugin import Audit, Data, DemoLogps, LearningRates, Level, LossOutput, Needs, SearchSpace


@dataclass(frozen=True, kw_only=True)
class DFT:
    r"""SFT with each token weighted by its own probability, so that unlikely tokens count less.

    L = -(1/|y|) sum_t sg[p_t] * log p_t,   p_t = pi(y_t|x, y_<t);   sg: without gradient

    Value at policy = reference: none, it has no reference.

    Identities: dft where every token has probability 1/2 = sft / 2.

    Differences: the paper sums over tokens; here the loss is a mean over each demonstration's own tokens; TRL 1.16
    (`loss_type="dft"`) takes the mean over the batch's tokens.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2508.05629"
    needs: ClassVar[Needs] = Needs(data=Data.DEMONSTRATIONS, reference=False, lengths=True, tokens=True)
    search_space: ClassVar[SearchSpace] = {}  # no strength to search: learning rates instead
    chosen_rises: ClassVar[bool] = True
    audit: ClassVar[Audit] = Audit(Level.SECONDARY, "TRL 1.16.0 trl/trainer/sft_trainer.py", "2026-11-29")
    learning_rates: ClassVar[LearningRates] = LearningRates(5e-5, 5e-5, "yongliang-wu/DFT README.md@0622902")

    def __call__(self, logps: DemoLogps, /) -> LossOutput:
        token = logps.chosen.per_token
        weighted = token.exp().detach() * token * logps.chosen.mask
        return LossOutput(loss=-weighted.sum(-1) / logps.chosen.num_tokens)
