"""RainbowPO: A Unified Framework for Combining Improvements in Preference Optimization (Zhao et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from prefopt.losses.mallows_dpo import dispersion
from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, Vocab, require


@dataclass(frozen=True, kw_only=True)
class RainbowPO:
    r"""SimPO with a margin mixed from the reference and a constant, and Mallows-DPO's dispersion.

    L = -log sigmoid(beta * phi * (d - alpha * d_ref - (1 - alpha) * gamma))
    d = log pi(y_w|x)/n_w - log pi(y_l|x)/n_l;   phi as in `mallows_dpo`

    Value at policy = reference: log(1 + exp(-beta * phi * (1 - alpha) * (d_ref - gamma))).

    Identities: rainbow_po(alpha=0) where phi = 1 = simpo.

    Differences: none from the authors' code, whose defaults are those here (beta 10, mixing_alpha 0.25, home_advantage
    0.1, neg_log_dispersion_mean 0.29). The paper's rejection sampling concerns the data; its likelihood term is `mix`
    with `sft`.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2410.04203"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, lengths=True, vocab=frozenset({Vocab.REF_ENTROPY}))
    search_space: ClassVar[SearchSpace] = {"beta": (2.0, 5.0, 10.0, 15.0)}
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "CapitalOne-Research/RainbowPO trl/trainer/dpo_trainer.py@6dccae3", "2026-11-29"
    )
    learning_rates: ClassVar[LearningRates] = LearningRates(
        1e-6, 1e-6, "hanyang1999/RainbowPO commands_training_ultrafeedback_RainbowPO_final_run.ipynb@42d4fdf"
    )

    vocab_size: int  # V, tokens that the model can emit; must be given; useful range 2 and up
    beta: float = 10.0  # reward per (nat/token) at phi = 1; useful range 2 to 15
    alpha: float = 0.25  # share of the reference's margin, no unit; useful range 0 to 1
    gamma: float = 0.1  # constant margin in nats/token; useful range 0 to 0.8
    neg_log_dispersion_mean: float = 0.29  # c of phi, as in `mallows_dpo`; useful range 0.2 to 1

    def __post_init__(self) -> None:
        require(
            self,
            vocab_size=self.vocab_size >= 2,
            beta=0 < self.beta < math.inf,
            alpha=0 <= self.alpha <= 1,
            gamma=-math.inf < self.gamma < math.inf,
            neg_log_dispersion_mean=0 < self.neg_log_dispersion_mean < math.inf,
        )

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        scale = self.beta * dispersion(self, logps)
        margin = logps.chosen.mean - logps.rejected.mean
        return LossOutput(
            loss=-F.logsigmoid(scale * (margin - self._target(logps))),
            chosen_reward=(scale * (logps.chosen.mean - self.alpha * logps.chosen.ref_mean)).detach(),
            rejected_reward=(scale * (logps.rejected.mean - self.alpha * logps.rejected.ref_mean)).detach(),
            metrics={"phi": scale / self.beta},
        )

    def _target(self, logps: PairLogps) -> Tensor:
        return self.alpha * (logps.chosen.ref_mean - logps.rejected.ref_mean) + (1 - self.alpha) * self.gamma

    def at_reference(self, logps: PairLogps, /) -> Tensor:
        scale = self.beta * dispersion(self, logps)
        margin = logps.chosen.ref_mean - logps.rejected.ref_mean
        return -F.logsigmoid(scale * (1 - self.alpha) * (margin - self.gamma))
