"""Log-probs as a loss sees them, one class per shape of data.

Legend: B examples, K completions of a list, T tokens of the longest completion. Tensors are (B,) unless a field says
otherwise; log-probs are in nats; lengths are in tokens and count the closing end-of-turn token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefopt.plugin import Data


@dataclass(frozen=True, kw_only=True)
class Logps:
    """Log-probs of one completion per example, under the policy and, where asked for, under the reference.

    Attributes:
        sum: (B,) sum over the completion's tokens; carries the gradient. (B, K) inside `ListLogps`.
        num_tokens: same shape, number of completion tokens, at least 1 (0 marks an absent list entry).
        ref_sum: same shape, the reference's sum.
        token: (B, T) per-token log-probs, 0 past the end.
        ref_token: (B, T) the reference's, 0 past the end.
        log_sum_sq, ref_entropy, kl: (B, T) whole-vocabulary statistics, see `prefopt.plugin.Vocab`.
    """

    sum: Tensor
    num_tokens: Tensor
    ref_sum: Tensor | None = None
    token: Tensor | None = None
    ref_token: Tensor | None = None
    log_sum_sq: Tensor | None = None
    ref_entropy: Tensor | None = None
    kl: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("num_tokens", "ref_sum"):
            _same_shape(self.sum, getattr(self, name), name)
        for name in ("ref_token", "log_sum_sq", "ref_entropy", "kl"):
            if self.token is not None:
                _same_shape(self.token, getattr(self, name), name)

    @property
    def mean(self) -> Tensor:
        """Log-prob per token, `sum / num_tokens`, in at least float32."""
        return _precise(self.sum) / self.num_tokens.clamp(min=1)

    @property
    def ref_mean(self) -> Tensor:
        """The reference's log-prob per token, in at least float32."""
        return _precise(self.reference) / self.num_tokens.clamp(min=1)

    @property
    def reference(self) -> Tensor:
        """`ref_sum`, or an error where the batch came without a reference."""
        if self.ref_sum is None:
            raise ValueError("this batch has no reference log-probs: declare `Needs(reference=True)` to be given them")
        return self.ref_sum

    @property
    def ratio(self) -> Tensor:
        """Log-ratio of policy to reference, `sum - ref_sum` (rho in the docs), in at least float32."""
        return _precise(self.sum) - _precise(self.reference)

    @property
    def per_token(self) -> Tensor:
        """(B, T) `token`, or an error where the batch came without."""
        if self.token is None:
            raise ValueError("this batch has no per-token log-probs: declare `Needs(tokens=True)` to be given them")
        return self.token

    @property
    def ref_per_token(self) -> Tensor:
        """(B, T) `ref_token`, or an error where the batch came without."""
        if self.ref_token is None:
            raise ValueError("no reference per-token log-probs: declare `Needs(tokens=True, reference=True)`")
        return self.ref_token

    @property
    def mask(self) -> Tensor:
        """(B, T) bool, true on the completion's tokens."""
        given = (self.token, self.log_sum_sq, self.ref_entropy, self.kl)
        per_token = next((value for value in given if value is not None), None)
        width = self.per_token.shape[-1] if per_token is None else per_token.shape[-1]
        steps = torch.arange(width, device=self.sum.device)
        return steps < self.num_tokens.unsqueeze(-1)

    def vocab(self, name: str) -> Tensor:
        """(B, T) a whole-vocabulary statistic by its name, or an error where the batch came without."""
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise ValueError(f"this batch has no {name}: declare it in `Needs(vocab=...)` to be given it")
        return value


@dataclass(frozen=True, kw_only=True)
class PairLogps:
    """B pairs. `ids` are stable integers of the records (for draws that must not depend on order)."""

    chosen: Logps
    rejected: Logps
    ids: Tensor | None = None
    chosen_score: Tensor | None = None
    rejected_score: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("ids", "chosen_score", "rejected_score"):
            _same_shape(self.chosen.sum, getattr(self, name), name)
        _same_shape(self.chosen.sum, self.rejected.sum, "rejected")

    @property
    def score_gap(self) -> Tensor:
        """`chosen_score - rejected_score`, or an error where the batch came without scores."""
        if self.chosen_score is None or self.rejected_score is None:
            raise ValueError("this batch has no scores: declare `Needs(scores=True)`, and give records with scores")
        return self.chosen_score - self.rejected_score


@dataclass(frozen=True, kw_only=True)
class UnpairedLogps:
    """B single completions, each desirable or not; `mismatched` scores another record's completion, one per example."""

    completion: Logps
    desirable: Tensor  # (B,) bool
    mismatched: Logps | None = None
    ids: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("desirable", "ids"):
            _same_shape(self.completion.sum, getattr(self, name), name)


@dataclass(frozen=True, kw_only=True)
class ListLogps:
    """B lists of up to K completions: every field of `completions` is (B, K) (per-token ones (B, K, T)).

    `scores` is (B, K), higher is better; `mask` is (B, K) bool, false where a list is shorter than K.
    """

    completions: Logps
    scores: Tensor
    mask: Tensor
    ids: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("scores", "mask"):
            _same_shape(self.completions.sum, getattr(self, name), name)


@dataclass(frozen=True, kw_only=True)
class DemoLogps:
    """B demonstrations."""

    chosen: Logps
    ids: Tensor | None = None


AnyLogps = PairLogps | UnpairedLogps | ListLogps | DemoLogps

SHAPES: dict[Data, type[Any]] = {
    Data.PAIRS: PairLogps,
    Data.UNPAIRED: UnpairedLogps,
    Data.LISTS: ListLogps,
    Data.DEMONSTRATIONS: DemoLogps,
}


def _precise(value: Tensor) -> Tensor:
    """bfloat16 has 8 bits: differences and means of log-probs are taken in float32."""
    return value if value.dtype == torch.float64 else value.float()


def _same_shape(like: Tensor, value: Tensor | None, name: str) -> None:
    """Refuse shapes that torch would broadcast: (B,) against (B, 1) is a wrong number, not an error, in torch."""
    if value is not None and value.shape != like.shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {tuple(like.shape)}")
