"""CSFT: Pretraining Language Models with Human Preferences, conditional training (Korbak et al., 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, SearchSpace, UnpairedLogps, require


@dataclass(frozen=True, kw_only=True)
class CSFT:
    r"""SFT on every completion behind a control text that marks it as good or bad; generate after the good one.

    L = -log pi(c, y|x) / (|c| + |y|),   c = good if y is desirable, else bad     (Sec. 2, conditional training)

    Value at policy = reference: none, it has no reference.

    Identities: csft = sft of every completion.

    Differences: none from HALOs, where, as here, the control text is part of the completion, is scored and counts in
    its length; the paper pretrains with special tokens before each sentence. The data layer inserts the text: the label
    acts through c alone.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2302.08582"
    needs: ClassVar[Needs] = Needs(data=Data.UNPAIRED, reference=False, lengths=True, control_text=True)
    search_space: ClassVar[SearchSpace] = {}  # no strength to search: learning rates instead
    chosen_rises: ClassVar[bool] = True
    audit: ClassVar[Audit] = Audit(Level.SECONDARY, "ContextualAI/HALOs train/dataloader.py@5931b71", "2026-11-29")
    learning_rates: ClassVar[LearningRates] = LearningRates(
        5e-6, 5e-6, "the default of all losses in ContextualAI/HALOs config/config.yaml@00a123c"
    )

    good: str = "<|good|>"  # text before a desirable completion; any text that the data does not hold
    bad: str = "<|bad|>"  # text before an undesirable completion; any text that the data does not hold

    def __post_init__(self) -> None:
        require(self, good=bool(self.good), bad=bool(self.bad) and self.bad != self.good)

    @property
    def control_text(self) -> tuple[str, str]:
        """(good, bad): what begins a desirable and an undesirable completion."""
        return self.good, self.bad

    def __call__(self, logps: UnpairedLogps, /) -> LossOutput:
        return LossOutput(loss=-logps.completion.mean)
