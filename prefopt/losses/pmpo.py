"""PMPO: Learning from negative feedback, or positive feedback or both (Abdolmaleki et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from prefopt.plugin import Audit, Data, Level, LossOutput, Needs, SearchSpace, UnpairedLogps, Vocab, require


@dataclass(frozen=True, kw_only=True)
class PMPO:
    r"""Likelihood of good completions, unlikelihood of bad ones, each alone if need be, held by a KL to the reference.

    L = -alpha * log pi(y|x) + beta * K          desirable
    L = (1 - alpha) * log pi(y|x) + beta * K     undesirable     (Eq. 10, as a loss)
    K = sum_t KL(pi_ref(.|y_<t) || pi(.|y_<t)), with gradient

    Value at policy = reference: -alpha log pi(y|x) on a desirable item, (1 - alpha) log pi(y|x) on an undesirable one.

    Identities: pmpo(alpha=1.0) where the KL is 0, on desirable items = sft times the length.

    Fixed points: of one token's distribution, pi = (beta pi_ref + alpha good - (1 - alpha) bad) / (beta + 2 alpha - 1),
    where that is positive: good and bad are the distributions of the labelled tokens.

    Differences: the paper's KL is over all texts; K is its part along the given completion, as in `tdpo1`. The paper
    takes the mean over good and over bad completions apart, this loss over all of them. The default of beta is ours:
    above 1 - alpha, tokens that are bad as often as the reference writes them keep a positive probability.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2410.04166"
    needs: ClassVar[Needs] = Needs(data=Data.UNPAIRED, reference=False, vocab=frozenset({Vocab.KL}))
    search_space: ClassVar[SearchSpace] = {"beta": (0.6, 1.0, 2.0, 5.0)}
    chosen_rises: ClassVar[bool] = True
    audit: ClassVar[Audit] = Audit(Level.DERIVED, "arXiv:2410.04166, Eq. 10", "2026-11-30")

    alpha: float = 0.5  # weight of good completions, that of bad ones is 1 - alpha; useful range 0 to 1
    beta: float = 1.0  # weight of the KL, no unit; useful range 0.5 to 5, above 1 - alpha

    def __post_init__(self) -> None:
        require(self, alpha=0 <= self.alpha <= 1, beta=0 < self.beta < math.inf)

    def __call__(self, logps: UnpairedLogps, /) -> LossOutput:
        side = logps.completion
        kl = (side.vocab("kl") * side.mask).sum(-1)
        weight = torch.where(logps.desirable, -self.alpha, 1 - self.alpha).to(kl)
        return LossOutput(loss=weight * side.sum + self.beta * kl, metrics={"kl": kl.detach()})
