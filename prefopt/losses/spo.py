"""SPO: Self Preference Optimization with Self Regularization (Sun et al., 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from prefopt.plugin import Audit, Data, Level, LossOutput, Needs, PairLogps, SearchSpace, require


@dataclass(frozen=True, kw_only=True)
class SPO:
    r"""SimPO with SiLU in place of the logistic loss, which is least at a finite margin.

    L = -z * sigmoid(-z),   z = beta * (log pi(y_w|x) / n_w - log pi(y_l|x) / n_l - gamma_beta_ratio)

    It is least, -0.278, at z = 1.278. Above it by at most log 2, at z = 0, lies SimPO's: simpo <= spo + log 2, which is
    how the paper's abstract calls it an upper bound.

    Value at policy = reference: none, it has no reference.

    Identities: spo = spo(gamma_beta_ratio=0.0) on pairs whose margin is smaller by gamma_beta_ratio.

    Differences: formula from VyvoTTS's code; checked against the paper's abstract alone (no reference, a SiLU with a
    finite minimum, an upper bound). VyvoTTS's gamma is 0.8 = beta * gamma_beta_ratio. oxRL's `spo`,
    -SiLU(beta * (rho_w - rho_l)) against a reference, falls without bound and so is none of these.
    """

    paper: ClassVar[str] = "https://aclanthology.org/2025.findings-emnlp.300"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=False, lengths=True)
    finite_optimum: ClassVar[bool] = True
    search_space: ClassVar[SearchSpace] = {"beta": (1.0, 2.5, 5.0, 10.0)}
    exceptions: ClassVar[dict[str, str]] = {"direction": "past z = 1.278 it turns back, by design"}
    audit: ClassVar[Audit] = Audit(
        Level.SECONDARY, "Vyvo-Labs/VyvoTTS vyvotts/train/post_training/preference.py@0b7285e", "2026-11-30"
    )

    beta: float = 2.5  # reward per (nat/token); useful range 1 to 10
    gamma_beta_ratio: float = 0.32  # margin at which z is 0, in nats/token; useful range 0 to 0.8

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, gamma_beta_ratio=-math.inf < self.gamma_beta_ratio < math.inf)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        chosen, rejected = logps.chosen.mean, logps.rejected.mean
        return LossOutput(
            loss=F.silu(-self.beta * (chosen - rejected - self.gamma_beta_ratio)),
            chosen_reward=(self.beta * chosen).detach(),
            rejected_reward=(self.beta * rejected).detach(),
        )
