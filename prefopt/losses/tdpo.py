"""TDPO: Token-level Direct Preference Optimization (Zeng et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from prefopt.plugin import (
    Audit,
    Data,
    LearningRates,
    Level,
    Logps,
    LossOutput,
    Needs,
    PairLogps,
    SearchSpace,
    Vocab,
    require,
)


@dataclass(frozen=True, kw_only=True)
class TDPO1:
    r"""DPO with the difference of the two sides' sequential KL subtracted from the margin.

    L = -log sigmoid(beta * (rho_w - rho_l - (K_l - K_w))),   rho = log pi(y|x) - log pi_ref(y|x)
    K = sum_t KL(pi_ref(.|y_<t) || pi(.|y_<t)), with gradient

    Value at policy = reference: log 2.

    Identities: tdpo1 = tdpo2(alpha=1.0); tdpo1 where the KL is 0 = dpo.

    Differences: none from the authors' code (`if_tdpo2=False`), whose logged rewards, as here, are beta * (rho + K).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2404.11999"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, vocab=frozenset({Vocab.KL}))
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "Vance0124/Token-level-Direct-Preference-Optimization trainers.py@2a736ec", "2026-11-29"
    )
    learning_rates: ClassVar[LearningRates] = LearningRates(
        4e-7,
        5e-6,
        "Vance0124/Token-level-Direct-Preference-Optimization config/config.yaml@4a36a00 (5e-6, RMSprop); as "
        "a baseline in LuJunru/SamPO dpo.sh@8b409a4 (4e-7 to 1e-6)",
    )

    beta: float = 0.1  # reward per nat; useful range 0.01 to 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen_kl, rejected_kl = _sequential_kl(logps.chosen), _sequential_kl(logps.rejected)
        return _output(self.beta, logps, rejected_kl - chosen_kl)

    def at_reference(self, logps: PairLogps, /) -> float:
        return math.log(2)


@dataclass(frozen=True, kw_only=True)
class TDPO2:
    r"""TDPO with a weighted correction and no gradient through the chosen side's KL.

    L = -log sigmoid(beta * (rho_w - rho_l - alpha * (K_l - sg[K_w]))),   rho = log pi(y|x) - log pi_ref(y|x)
    K = sum_t KL(pi_ref(.|y_<t) || pi(.|y_<t)); sg: without gradient

    Value at policy = reference: log 2.

    Identities: tdpo2(alpha=0.0) = dpo.

    Differences: none from the authors' code (`if_tdpo2=True`); logged rewards as in `tdpo1`.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2404.11999"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, vocab=frozenset({Vocab.KL}))
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "Vance0124/Token-level-Direct-Preference-Optimization trainers.py@2a736ec", "2026-11-29"
    )
    learning_rates: ClassVar[LearningRates] = LearningRates(
        4e-7,
        5e-6,
        "Vance0124/Token-level-Direct-Preference-Optimization config/config.yaml@4a36a00 (5e-6, RMSprop); as "
        "a baseline in LuJunru/SamPO dpo.sh@8b409a4 (4e-7 to 1e-6)",
    )

    beta: float = 0.1  # reward per nat; useful range 0.01 to 1
    alpha: float = 0.5  # weight of the KL correction, no unit; useful range 0 (which is `dpo`) to 1

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, alpha=0 <= self.alpha < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen_kl, rejected_kl = _sequential_kl(logps.chosen), _sequential_kl(logps.rejected)
        return _output(self.beta, logps, self.alpha * (rejected_kl - chosen_kl.detach()))

    def at_reference(self, logps: PairLogps, /) -> float:
        return math.log(2)


def _sequential_kl(side: Logps) -> Tensor:
    return (side.vocab("kl") * side.mask).sum(-1)


def _output(beta: float, logps: PairLogps, correction: Tensor) -> LossOutput:
    chosen, rejected = beta * logps.chosen.ratio, beta * logps.rejected.ratio
    chosen_kl, rejected_kl = _sequential_kl(logps.chosen).detach(), _sequential_kl(logps.rejected).detach()
    return LossOutput(
        loss=-F.logsigmoid(chosen - rejected - beta * correction),
        chosen_reward=chosen.detach() + beta * chosen_kl,
        rejected_reward=rejected.detach() + beta * rejected_kl,
        metrics={"kl/chosen": chosen_kl, "kl/rejected": rejected_kl},
    )
