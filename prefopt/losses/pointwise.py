"""Reward models from ratings of single completions: regression (Wang et al., 2024), and classification."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from prefopt.plugin import (
    Audit,
    Data,
    LearningRates,
    Level,
    ListLogps,
    LossOutput,
    Needs,
    Ranking,
    SearchSpace,
    UnpairedLogps,
    require,
)


@dataclass(frozen=True, kw_only=True)
class Pointwise:
    r"""Squared error of a reward model's scores against the ratings in the data.

    L = (1 / K) sum_k (s_k - (y_k - offset) / scale)^2

    Value at policy = reference: none, there is no reference.

    Identities: pointwise(offset=0.5, scale=2.0) = pointwise on ratings less 0.5 divided by 2.

    Differences: HelpSteer2 regresses five attributes at once; this is one rating for each completion, and one value for
    each prompt, whatever its number of completions. A pair without scores has the ratings 1 and 0.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2406.08673"
    needs: ClassVar[Needs] = Needs(data=Data.LISTS, reference=False, scores=True, reward_model=True)
    ranking: ClassVar[Ranking] = Ranking.POINTWISE
    search_space: ClassVar[SearchSpace] = {"scale": (0.5, 1.0, 2.0, 4.0)}
    exceptions: ClassVar[dict[str, str]] = {
        "direction": "a score above its rating is pulled down, also that of the best completion"
    }
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE,
        "NVIDIA/NeMo-Aligner nemo_aligner/models/nlp/gpt/megatron_gpt_regression_reward_model.py@1f9527b",
        "2026-11-30",
    )
    learning_rates: ClassVar[LearningRates] = LearningRates(
        2e-6,
        9e-6,
        "NVIDIA/NeMo-Aligner docs/user-guide/steerlm.rst@007123b (2e-6 at 70B), "
        "examples/nlp/gpt/conf/training_rm.yaml@0e90b71 (9e-6)",
    )

    offset: float = 0.0  # rating that becomes a score of 0; the middle of the data's scale trains best
    scale: float = 1.0  # ratings per unit of score, best half the width of the data's scale; useful range 0.5 to 4

    def __post_init__(self) -> None:
        require(self, offset=-math.inf < self.offset < math.inf, scale=0 < self.scale < math.inf)

    def __call__(self, logps: ListLogps, /) -> LossOutput:
        scores, count = logps.completions.sum, logps.mask.sum(-1)
        error = (scores - (logps.scores - self.offset) / self.scale) * logps.mask
        return LossOutput(loss=(error**2).sum(-1) / count, reward=scores.detach())


@dataclass(frozen=True, kw_only=True)
class PointwiseBCE:
    r"""Cross-entropy of a reward model's scores against labels: the score is the log-odds of a good completion.

    L = -log sigmoid(s) for a desirable completion, -log sigmoid(-s) for an undesirable one

    Value at policy = reference: none, there is no reference.

    Identities: pointwise_bce, both items of a pair = bco_pair_zero(beta=1.0) on scores with a reference of 0.

    Differences: none from logistic regression, whose logit BCO shows to be a reward. A pair counts as one desirable
    and one undesirable completion.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2404.04656"
    needs: ClassVar[Needs] = Needs(data=Data.UNPAIRED, reference=False, reward_model=True)
    search_space: ClassVar[SearchSpace] = {}
    audit: ClassVar[Audit] = Audit(Level.DERIVED, "arXiv:2404.04656, Theorem 1 and Eq. 6", "2026-11-30")

    def __call__(self, logps: UnpairedLogps, /) -> LossOutput:
        scores = logps.completion.sum
        signed = scores.where(logps.desirable, -scores)
        return LossOutput(loss=-F.logsigmoid(signed), reward=scores.detach())
