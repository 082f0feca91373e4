"""SFT: maximum likelihood on demonstrations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prefopt.batch import DemoLogps
from prefopt.plugin import Data, LossOutput, Needs


@dataclass(frozen=True, kw_only=True)
class SFT:
    r"""Negative log-likelihood per token of each demonstration.

    L = -log pi(y|x) / |y|     (cross-entropy; with the prompt masked, as in Ouyang et al. 2022, Sec. 3.5 step 1)

    Value at policy = reference: none, it has no reference.

    Differences: the mean is over a demonstration's own tokens, then over demonstrations, so that an example's value
    does not depend on its batch. TRL averages over all tokens of the batch: there a long demonstration weighs more,
    by |y| / mean |y|.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2203.02155"
    needs: ClassVar[Needs] = Needs(data=Data.DEMONSTRATIONS, reference=False, lengths=True)

    def __call__(self, logps: DemoLogps, /) -> LossOutput:
        return LossOutput(loss=-logps.chosen.mean)

    def at_reference(self, logps: DemoLogps, /) -> None:
        return None
