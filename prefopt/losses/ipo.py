"""IPO: A General Theoretical Paradigm to Understand Learning from Human Preferences (Azar et al., 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class IPO:
    r"""Squared distance of the per-token log-ratio margin to a fixed target.

    L = (rho_w / n_w - rho_l / n_l - 1 / (2 tau))^2,   rho = log pi(y|x) - log pi_ref(y|x)     (Eq. 17, per token)

    Value at policy = reference: 1 / (4 tau^2).

    Identities: ipo at lengths 1 = ipo_sum.

    Differences: Eq. 17 has sums, which is `ipo_sum`; the division by length follows the authors, who confirmed to the
    maintainers of TRL that their results used it. In TRL this is `loss_type="ipo"`, whose `beta` is tau here; up to
    TRL 1.16 its lengths count the completion mask, as here.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2310.12036"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, lengths=True)
    finite_optimum: ClassVar[bool] = True
    search_space: ClassVar[SearchSpace] = {"tau": (0.1, 0.5, 2.0, 8.0)}
    target_margin: ClassVar[float] = 0.5  # tau * 1/(2 tau)
    learning_rates: ClassVar[LearningRates] = LearningRates(3e-7, 1e-6, "arXiv:2405.14734, appendix (3e-7 to 1e-6)")
    audit: ClassVar[Audit] = Audit(
        Level.CONFIRMED, "huggingface/trl, pull request 1265; arXiv:2310.12036, Eq. 17", "2026-11-29"
    )

    tau: float = 0.1  # regularisation, per (nat/token); useful range 0.05 to 10; the target margin is 1/(2 tau)

    def __post_init__(self) -> None:
        require(self, tau=0 < self.tau < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen = logps.chosen.mean - logps.chosen.ref_mean
        rejected = logps.rejected.mean - logps.rejected.ref_mean
        return LossOutput(
            loss=(chosen - rejected - 1 / (2 * self.tau)) ** 2,
            chosen_reward=(self.tau * chosen).detach(),
            rejected_reward=(self.tau * rejected).detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> float:
        return 1 / (4 * self.tau**2)


@dataclass(frozen=True, kw_only=True)
class IPOSum:
    r"""Squared distance of the log-ratio margin to a fixed target.

    L = (rho_w - rho_l - 1 / (2 tau))^2,   rho = log pi(y|x) - log pi_ref(y|x)     (Eq. 17)

    Value at policy = reference: 1 / (4 tau^2).

    Differences: none from the paper. TRL 1.16's `loss_type="ipo"` divides by the lengths (`ipo` here).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2310.12036"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True)
    finite_optimum: ClassVar[bool] = True
    search_space: ClassVar[SearchSpace] = {"tau": (0.03, 0.1, 0.3, 1.0)}
    target_margin: ClassVar[float] = 0.5  # tau * 1/(2 tau)
    learning_rates: ClassVar[LearningRates] = LearningRates(3e-7, 1e-6, "arXiv:2405.14734, appendix (3e-7 to 1e-6)")
    audit: ClassVar[Audit] = Audit(Level.DERIVED, "arXiv:2310.12036, Eq. 17", "2026-11-29")

    tau: float = 0.1  # regularisation, per nat; useful range 0.01 to 1; the target margin is 1/(2 tau) nats

    def __post_init__(self) -> None:
        require(self, tau=0 < self.tau < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = logps.chosen.ratio, logps.rejected.ratio
        return LossOutput(
            loss=(chosen - rejected - 1 / (2 * self.tau)) ** 2,
            chosen_reward=(self.tau * chosen).detach(),
            rejected_reward=(self.tau * rejected).detach(),
        )

    def at_reference(self, logps: PairLogps, /) -> float:
        return 1 / (4 * self.tau**2)
