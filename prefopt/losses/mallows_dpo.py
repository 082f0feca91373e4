"""Mallows-DPO: Fine-Tune Your LLM with Preference Dispersions (Chen et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch.nn.functional as F
from torch import Tensor

from prefopt.plugin import Audit, Data, LearningRates, Level, LossOutput, Needs, PairLogps, SearchSpace, Vocab, require


@dataclass(frozen=True, kw_only=True)
class MallowsDPO:
    r"""DPO with a larger beta on prompts where the reference's predictions have low entropy.

    L = -log sigmoid(beta * phi * (rho_w - rho_l)),   phi = -c * log(H / log V)
    H = mean token entropy of the reference, averaged over both sides, in nats; V the size of the vocabulary;
    c = `neg_log_dispersion_mean`

    Value at policy = reference: log 2.

    Identities: mallows_dpo where phi = 1 = dpo.

    Differences: the authors' configuration is length-normalised and without a reference, with beta = 10; this is the
    paper's loss with DPO's beta. c normalises phi to a mean of 1: the authors' 0.29 fits Llama-3 (mean of -log(H / log
    V) 3.45), other models need their own, and a small one with 0.29 has about half the beta. V must be given, since it
    does not follow from log-probs.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2405.14953"
    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, lengths=True, vocab=frozenset({Vocab.REF_ENTROPY}))
    search_space: ClassVar[SearchSpace] = {"beta": (0.03, 0.1, 0.3, 1.0)}
    audit: ClassVar[Audit] = Audit(
        Level.AUTHORS_CODE, "haoxian-chen/MallowsPO mallowsPO_trainer.py@c188a2e", "2026-11-29"
    )
    learning_rates: ClassVar[LearningRates] = LearningRates(
        1e-6, 1e-6, "hanyang1999/RainbowPO commands_training_ultrafeedback_XPOs.ipynb@42d4fdf"
    )

    vocab_size: int  # V, tokens that the model can emit; must be given; useful range 2 and up
    beta: float = 0.1  # reward per nat of log-ratio at phi = 1; useful range 0.01 to 1
    neg_log_dispersion_mean: float = 0.29  # c, one over the data's mean of -log(H / log V); useful range 0.2 to 1

    def __post_init__(self) -> None:
        require(
            self,
            beta=0 < self.beta < math.inf,
            vocab_size=self.vocab_size >= 2,
            neg_log_dispersion_mean=0 < self.neg_log_dispersion_mean < math.inf,
        )

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        phi = dispersion(self, logps)
        chosen, rejected = self.beta * phi * logps.chosen.ratio, self.beta * phi * logps.rejected.ratio
        return LossOutput(
            loss=-F.logsigmoid(chosen - rejected),
            chosen_reward=chosen.detach(),
            rejected_reward=rejected.detach(),
            metrics={"phi": phi},
        )

    def at_reference(self, logps: PairLogps, /) -> float:
        return math.log(2)


class Dispersed(Protocol):
    """A loss with the settings of the dispersion."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def neg_log_dispersion_mean(self) -> float: ...


def dispersion(loss: Dispersed, logps: PairLogps) -> Tensor:
    """(B,) phi, without gradient; 0 where the reference is uniform, at most c * 24 log 2 where it is certain."""
    sides = [
        (side.vocab("ref_entropy") * side.mask).sum(-1) / side.num_tokens for side in (logps.chosen, logps.rejected)
    ]
    share = ((sides[0] + sides[1]) / (2 * math.log(loss.vocab_size))).detach()
    log_share = share.clamp(2.0**-24, 1.0).log()  # an entropy of 0 or above log V is rounding
    return -loss.neg_log_dispersion_mean * log_share
