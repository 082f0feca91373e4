"""TPO: Triple Preference Optimization (Saeidi et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from prefopt.losses._lists import best, best_first, worst
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
    require,
)


@dataclass(frozen=True, kw_only=True)
class TPO:
    r"""Reference-free loss on a pair, plus the likelihood of a third, gold completion.

    L = -log sigmoid(beta * (log pi(y_w|x) - log pi(y_l|x))) - alpha * log pi(y_gold|x) / n_gold

    Value at policy = reference: none, it has no reference.

    Identities: tpo(alpha=0) = cpo(alpha=0).

    Differences: in a list of at least 3, gold is the best-scored completion, y_w the second, y_l the worst. TRL 1.16
    (`TPOTrainer`) takes the likelihood's mean over all gold tokens of the micro-batch.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2405.16681"
    needs: ClassVar[Needs] = Needs(data=Data.LISTS, reference=False, lengths=True, scores=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.01, 0.1, 0.3, 1.0)}
    ranking: ClassVar[Ranking] = Ranking.PAIRWISE
    chosen_rises: ClassVar[bool] = True
    audit: ClassVar[Audit] = Audit(Level.SECONDARY, "TRL 1.16.0 trl/experimental/tpo/tpo_trainer.py", "2026-11-29")
    learning_rates: ClassVar[LearningRates] = LearningRates(
        5e-7, 5e-7, "sahsaeedi/triple-preference-optimization run_tpo.sh@2859646"
    )

    beta: float = 0.01  # reward per nat; useful range 0.01 to 1
    alpha: float = 1.0  # weight of the gold likelihood, per (nat/token); useful range 0.05 to 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, alpha=0 <= self.alpha < math.inf)

    def __call__(self, logps: ListLogps, /) -> LossOutput:
        _, chosen, rejected = _triple(logps, logps.completions.sum)
        gold, _, _ = _triple(logps, logps.completions.mean)
        return LossOutput(
            loss=-F.logsigmoid(self.beta * (chosen - rejected)) - self.alpha * gold,
            reward=(self.beta * logps.completions.sum).detach(),
            metrics={"nll": -gold.detach()},
        )


@dataclass(frozen=True, kw_only=True)
class TPOL:
    r"""TPO on log-probs per token, with a margin.

    L = -log sigmoid(beta * (l_w - l_l) - gamma) - alpha * l_gold,   l = log pi(y|x) / n

    Value at policy = reference: none, it has no reference.

    Identities: tpo_l(alpha=0) = alpha_po(alpha=0).

    Differences: gamma is absolute, as in TRL 1.16 (`loss_type="tpo-l"`, `tpo_l_gamma`); the defaults are those of the
    authors' Llama-3-Base model on 5,000 records. The rest as `tpo`.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2405.16681"
    needs: ClassVar[Needs] = Needs(data=Data.LISTS, reference=False, lengths=True, scores=True)
    search_space: ClassVar[SearchSpace] = {"beta": (0.01, 0.1, 1.0, 10.0)}
    ranking: ClassVar[Ranking] = Ranking.PAIRWISE
    chosen_rises: ClassVar[bool] = True
    audit: ClassVar[Audit] = Audit(Level.SECONDARY, "TRL 1.16.0 trl/experimental/tpo/tpo_trainer.py", "2026-11-29")
    learning_rates: ClassVar[LearningRates] = LearningRates(
        5e-7, 5e-7, "as tpo; the default in TRL 1.16.0 trl/experimental/tpo/tpo_config.py"
    )

    beta: float = 0.01  # reward per (nat/token); useful range 0.01 to 10
    alpha: float = 1.0  # weight of the gold likelihood, per (nat/token); useful range 0.05 to 1
    gamma: float = 0.5  # target margin in units of reward, absolute; useful range 0 to 5.4

    def __post_init__(self) -> None:
        require(
            self,
            beta=0 < self.beta < math.inf,
            alpha=0 <= self.alpha < math.inf,
            gamma=-math.inf < self.gamma < math.inf,
        )

    def __call__(self, logps: ListLogps, /) -> LossOutput:
        gold, chosen, rejected = _triple(logps, logps.completions.mean)
        return LossOutput(
            loss=-F.logsigmoid(self.beta * (chosen - rejected) - self.gamma) - self.alpha * gold,
            reward=(self.beta * logps.completions.mean).detach(),
            metrics={"nll": -gold.detach()},
        )


def _triple(logps: ListLogps, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The values (B,) of the best-scored, the second and the worst completion."""
    present = logps.mask.sum(-1)
    if int(present.min()) < 3:
        raise ValueError("tpo needs lists of at least 3 completions: gold, chosen and rejected")
    order, _ = best_first(logps)
    return best(logps, values), values.gather(-1, order[:, 1:2]).squeeze(-1), worst(logps, values)
