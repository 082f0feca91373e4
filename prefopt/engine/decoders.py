"""Computes the logits of the next tokens of a batch of texts, step by step, with the cache that fits the model.

Models of attention alone take left-padded rows of any lengths, and a key-value cache that shrinks as rows finish.
Models whose layers carry a state take rows of one length, because a state would take in padding, and their own cache.
Where neither gives the numbers of a plain forward, every token is computed from the whole text.
"""

from __future__ import annotations

import inspect
import logging
import weakref
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from prefopt.engine.forward import unwrap
from prefopt.engine.gates import PROBED_WINDOW, passed_as_trees, rounding
from prefopt.engine.kv_cache import roomy_cache
from prefopt.engine.limits import learned_positions, steady_positions
from prefopt.engine.next_token import check_logits
from prefopt.errors import Stopped, first_line

logger = logging.getLogger(__name__)

Prompts = Sequence[Sequence[int]]

CACHES = ("cache", "past_key_values", "cache_params", "state")  # what models call the cache that they return
PROBED = (2, 3, 5, 5, 8)  # lengths of the prompts that a decoder is tried with
AHEAD = 2  # tokens that it then writes
# Log-probs below count as equal: that of a token that a model rules out is -inf, and -inf less -inf is NaN.
LOWEST = -1e4


class Decoder:
    """Texts being written; `logits` (B, V) are those of the next token of each.

    Attributes:
        mixed: whether the prompts of a batch may have different lengths.
        shrinks: whether rows can be dropped.
    """

    mixed: ClassVar[bool] = False
    shrinks: ClassVar[bool] = True
    logits: Tensor

    def __init__(self, model: Any, prompts: Prompts) -> None:
        self.model = model
        arguments = inspect.signature(unwrap(model).forward).parameters
        self.cache_argument = "cache" if "cache" in arguments else "past_key_values"

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (K,)."""
        raise NotImplementedError

    def step(self, tokens: Tensor) -> None:
        """Append a token (B,) to each row."""
        raise NotImplementedError

    def repeat(self, rows: Tensor) -> None:
        """Make the rows of a batch (B,) of those of its different prompts."""
        if len(rows) > len(self.logits):
            self.keep(rows)
            self.logits = self.logits[rows]


class Mixture:
    """Texts whose next token is drawn from p^(1 - share) q^share, normalized: p of one model, q of another.

    Args:
        texts, others: the same texts under both, as they are written.
        share: of the other model; 0 to 1.
    """

    def __init__(self, texts: Decoder, others: Decoder, share: float) -> None:
        self.texts, self.others, self.share = texts, others, share

    @property
    def shrinks(self) -> bool:
        return self.texts.shrinks and self.others.shrinks

    @property
    def logits(self) -> Tensor:
        wide = torch.promote_types(self.texts.logits.dtype, torch.float32)
        return torch.lerp(self.texts.logits.to(wide), self.others.logits.to(wide), self.share)

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (K,)."""
        self.texts.keep(rows)
        self.others.keep(rows)

    def step(self, tokens: Tensor) -> None:
        """Append a token (B,) to each row."""
        self.texts.step(tokens)
        self.others.step(tokens)


class KeyValueDecoder(Decoder):
    """For attention alone: left-padded rows, whose keys and values can be repeated and dropped."""

    mixed = True

    def __init__(self, model: Any, prompts: Prompts) -> None:
        super().__init__(model, prompts)
        self.length = max(map(len, prompts))
        unique, rows = each_once(prompts, model.device)
        padded = any(len(prompt) < self.length for prompt in unique)
        ids = torch.zeros(len(unique), self.length, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(unique):
            ids[row, self.length - len(prompt) :] = torch.tensor(prompt)
            mask[row, self.length - len(prompt) :] = 1
        ids, mask = ids.to(model.device), mask.to(model.device)
        self.cache = roomy_cache(model.config)
        self.mask = mask if padded else None
        self._forward(ids, (mask.cumsum(1) - 1).clamp(min=0))
        self.repeat(rows)

    def keep(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.mask = None if self.mask is None else self.mask[rows]

    def step(self, tokens: Tensor) -> None:
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
            position_ids = self.mask.sum(1, keepdim=True) - 1
        else:
            position_ids = torch.full((len(tokens), 1), self.length, device=tokens.device)
        self.length += 1
        self._forward(tokens[:, None], position_ids)

    def _forward(self, ids: Tensor, position_ids: Tensor) -> None:
        output = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=position_ids,
            use_cache=True,
            logits_to_keep=1,
            **{self.cache_argument: self.cache},
        )
        self.logits = output.logits[:, -1]


class StateDecoder(Decoder):
    """For layers that carry a state: rows of one length, and the model's own cache, passed from step to step."""

    shrinks = False

    def __init__(self, model: Any, prompts: Prompts) -> None:
        super().__init__(model, prompts)
        self.length = 0
        self.carried: dict[str, Any] = {}
        ids = torch.tensor(prompts, device=model.device)
        self._forward(ids)
        if not self.carried:  # a model that fills a cache, but does not return it
            self.length, self.carried = 0, {self.cache_argument: DynamicCache(config=model.config)}
            self._forward(ids)

    def step(self, tokens: Tensor) -> None:
        self._forward(tokens[:, None])

    def _forward(self, ids: Tensor) -> None:
        # Not every model with a cache counts its positions itself.
        position_ids = torch.arange(self.length, self.length + ids.shape[1], device=ids.device).expand_as(ids)
        output = self.model(input_ids=ids, position_ids=position_ids, use_cache=True, logits_to_keep=1, **self.carried)
        self.length += ids.shape[1]
        returned = next((name for name in CACHES if output.get(name) is not None), None)
        self.carried = self.carried if returned is None else {returned: output[returned]}
        self.logits = output.logits[:, -1]


class PlainDecoder(Decoder):
    """For any model: rows of one length, and each token from a forward over the whole text."""

    def __init__(self, model: Any, prompts: Prompts) -> None:
        super().__init__(model, prompts)
        self.ids = torch.tensor(prompts, device=model.device)
        self._forward()

    def keep(self, rows: Tensor) -> None:
        self.ids = self.ids[rows]

    def step(self, tokens: Tensor) -> None:
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
        self._forward()

    def _forward(self) -> None:
        # A few rows at a time: some models project every token of the text.
        parts = torch.split(self.ids, max(1, 4096 // self.ids.shape[1]))
        self.logits = torch.cat([self.model(input_ids=part, use_cache=False).logits[:, -1] for part in parts])


def each_once(prompts: Prompts, device: torch.device) -> tuple[list[tuple[int, ...]], Tensor]:
    """The different prompts, and (B,) which of them each is."""
    place: dict[tuple[int, ...], int] = {}
    rows = [place.setdefault(tuple(prompt), len(place)) for prompt in prompts]
    return list(place), torch.tensor(rows, device=device)


def batches(prompts: Prompts, order: list[int], batch_size: int, decoder: type[Decoder]) -> Iterator[list[int]]:
    """The places of prompts in their order, cut into batches that a decoder takes."""
    groups = [order] if decoder.mixed else [list(group) for _, group in groupby(order, lambda i: len(prompts[i]))]
    for group in groups:
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


# The decoder of each model that has been tried.
DECODERS: weakref.WeakKeyDictionary[Any, type[Decoder]] = weakref.WeakKeyDictionary()


def choose_decoder(model: Any, longest: int) -> type[Decoder]:
    """The decoder for a model, which is tried once; `longest` is the number of tokens of the longest text."""
    causal = unwrap(model)
    if causal not in DECODERS:
        candidates, proven = _candidates(causal)
        reproducing = (decoder for decoder in candidates if proven or _reproduces(model, decoder))
        DECODERS[causal] = next(reproducing, PlainDecoder)
        if DECODERS[causal] is PlainDecoder:
            logger.warning("%s: no cache gives the numbers of its plain forward, so every token is computed from the "
                           "whole text, which is slow", type(causal).__name__)  # fmt: skip
    steady = steady_positions(causal.config.get_text_config())
    if steady is not None and longest > steady:
        return PlainDecoder  # the rotary embedding changes on the way, and cached keys would not
    return DECODERS[causal]


def _candidates(causal: Any) -> tuple[list[type[Decoder]], bool]:
    """The decoders to try, by what a model declares of its layers, and whether the first needs no trial."""
    try:
        layers = DynamicCache(config=causal.config).layers
    except Exception:  # layers that transformers has no cache for
        return [StateDecoder], False
    if any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers):
        return [StateDecoder], False
    # Trees have shown that there is attention alone, and that positions are as given. A window in the config makes the
    # cache forget; that the attention looks no further is certain only where the config says so of each layer.
    config = causal.config.get_text_config()
    declared = getattr(config, "layer_types", None) or getattr(config, "sliding_window", None) is None
    return [KeyValueDecoder, StateDecoder], bool(declared and passed_as_trees(causal))


def _reproduces(model: Any, decoder: type[Decoder]) -> bool:
    """Whether a decoder gives the log-probs of plain forwards after a few random prompts, and after the next tokens.

    Raises:
        UserError: those of the plain forwards are not finite.
    """
    causal = unwrap(model)
    config, limit = causal.config.get_text_config(), learned_positions(causal)
    window = getattr(config, "sliding_window", None) or 0
    lengths = [*PROBED, window + 1] if window <= PROBED_WINDOW else PROBED
    if limit is not None and limit < max(lengths) + AHEAD:
        return False
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, config.vocab_size, length + AHEAD).tolist() for length in sorted(lengths)]
    texts.append(texts[-1])  # a repeated prompt
    expected = [_plain_logps(model, text)[-1 - AHEAD :] for text in texts]
    try:
        error = _error(model, decoder, texts, expected)
    except (Stopped, torch.OutOfMemoryError):
        raise
    except Exception as problem:  # a model may do anything with a call it was not written for
        logger.info("%s does not work with %s: %s", type(causal).__name__, decoder.__name__, first_line(problem))
        return False
    # A cache that is not used at all is as far off as the last token alone. A fresh model's logits depend so little on
    # earlier tokens that a tolerance in nats would not show it.
    forgotten = float((_plain_logps(model, texts[-1][-1:])[-1] - expected[-1][-1]).abs().max())
    return error <= min(rounding(model), forgotten / 4)


def _error(model: Any, decoder: type[Decoder], texts: list[list[int]], expected: list[Tensor]) -> float:
    """How far a decoder is off the expected log-probs of the last tokens of some texts, at most; NaN counts."""
    error = 0.0
    prompts = [text[:-AHEAD] for text in texts]
    for rows in batches(prompts, list(range(len(texts))), len(texts), decoder):
        batch = decoder(model, [prompts[i] for i in rows])
        for ahead in range(AHEAD + 1):
            if ahead:
                batch.step(torch.tensor([texts[i][ahead - 1 - AHEAD] for i in rows], device=model.device))
            off = (bounded_logps(batch.logits) - torch.stack([expected[i][ahead] for i in rows])).abs().max()
            error = float(off) if not off <= error else error
            if ahead == 0 and decoder.shrinks and len(rows) > 1:
                batch.keep(torch.arange(1, len(rows), device=model.device))
                rows = rows[1:]
    return error


def bounded_logps(logits: Tensor) -> Tensor:
    """Log-probs in float64 of logits (..., V), none below `LOWEST`."""
    return logits.double().log_softmax(-1).clamp(min=LOWEST)


def _plain_logps(model: Any, ids: list[int]) -> Tensor:
    logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0]
    check_logits(logits)
    return bounded_logps(logits)
