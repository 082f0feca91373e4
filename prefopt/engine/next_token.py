"""Chooses the next tokens of a batch of texts from their logits, and scores them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from prefopt.errors import UserError

BLOCK = 256  # tokens of the vocabulary that are summed up together when one is drawn


def most_likely(logits: Tensor) -> Tensor:
    """The most likely tokens (B,) of logits (B, V).

    Raises:
        UserError: logits that are not finite.
    """
    chosen = logits.argmax(-1)
    check_logits(logits.gather(-1, chosen[:, None]))  # NaN counts as the largest
    return chosen


def scored(logits: Tensor, chosen: Tensor, temperature: float) -> Tensor:
    """The log-probs (B,) of tokens under logits (B, V) at a temperature."""
    wide = _divided(logits, temperature)
    return wide.gather(-1, chosen[:, None]).squeeze(1) - wide.logsumexp(-1)


def draw(logits: Tensor, uniforms: Tensor, temperature: float, scored_at: float | None) -> tuple[Tensor, Tensor | None]:
    """Next tokens (B,) from logits (B, V), and their log-probs (B,) at the temperature `scored_at`.

    A token is the inverse of the cumulative distribution at `uniforms` (B,): a block of the vocabulary, then a token in
    it, so that only a block is summed up one by one. Sums are float64: in float32 the rounding of 150,000 terms is as
    large as the rare tokens' shares.

    Raises:
        UserError: logits that are not finite.
    """
    scaled = _divided(logits, temperature)
    peak = scaled.amax(-1, keepdim=True)
    weights = F.pad((scaled - peak).exp_(), (0, -logits.shape[-1] % BLOCK)).view(len(scaled), -1, BLOCK)
    cumulative = weights.sum(-1, dtype=torch.float64).cumsum(-1)
    total = cumulative[:, -1:]
    place, rest = _inverse(cumulative, uniforms[:, None] * total)
    within, _ = _inverse(weights[torch.arange(len(weights), device=weights.device), place].double().cumsum(-1), rest)
    drawn = place * BLOCK + within
    known = total.squeeze(1).isfinite()
    if not known.all():  # the logits are not finite, or no longer so once divided by a tiny temperature
        check_logits(logits)
        drawn = torch.where(known, drawn, logits.argmax(-1))
    if scored_at is None:
        return drawn, None
    if scored_at != temperature:
        return drawn, scored(logits, drawn, scored_at)
    above = (scaled.gather(-1, drawn[:, None]) - peak).double()
    return drawn, (above - total.log()).squeeze(1).to(scaled.dtype)


def _inverse(cumulative: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """The first places (B,) where sums (B, N) of weights are beyond `at` (B, 1), and how much of `at` is left there.

    Those places have a weight above 0, however `at` is rounded.
    """
    below = cumulative[:, -1:] * (1 - 2**-52)
    place = torch.searchsorted(cumulative, torch.minimum(at, below), right=True).clamp(max=cumulative.shape[-1] - 1)
    before = torch.where(place > 0, cumulative.gather(-1, (place - 1).clamp(min=0)), 0.0)
    return place.squeeze(1), (at - before).clamp(min=0)


def _divided(logits: Tensor, temperature: float) -> Tensor:
    """Logits over the temperature, in float32 or better."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide if temperature == 1 else wide / temperature


def check_logits(logits: Tensor) -> None:
    """Check that rows (..., V) have a largest logit; -inf beside it rules a token out.

    Raises:
        UserError: one has not.
    """
    if not logits.amax(-1).isfinite().all():
        raise UserError("the model's logits are not finite (NaN or infinity), so no token can be chosen: its weights "
                        "are not finite, or too large for the precision that it runs in")  # fmt: skip
