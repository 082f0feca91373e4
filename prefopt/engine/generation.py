"""Sampling from a causal language model: batched, with the cache that fits it, proven against its plain forward.

Models of attention alone: left-padded rows of any lengths, with a key-value cache that shrinks as rows finish. Models
whose layers carry a state: rows of one length, without padding, which a state would take in, and the model's own cache.
Where neither gives the numbers of a plain forward, every token is computed from the whole text.
"""

from __future__ import annotations

import inspect
import logging
import math
import weakref
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from prefopt.engine.forward import evaluating, unwrap
from prefopt.engine.gates import PROBED_WINDOW, passed_as_trees, rounding
from prefopt.engine.limits import learned_positions, steady_positions
from prefopt.errors import UserError, first_line

logger = logging.getLogger(__name__)

_COMPACT_BELOW = 0.8  # finished rows leave the batch when fewer than this share of its rows is still being written
# Names of the cache in models' arguments and outputs; `cache` since transformers 5.24.
_STATES = ("cache", "past_key_values", "cache_params", "state")
_PROBED = (2, 3, 5, 5, 8)  # lengths of the prompts that a cache is tried with, `_AHEAD` tokens behind each
_AHEAD = 2
_FLOOR = -1e4  # log-probs below are alike: of a token that a model rules out it is -inf, and -inf less -inf is NaN


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int],
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 512,
) -> list[list[int]]:
    """One continuation of every prompt, in the order of the prompts.

    Each prompt has its own stream of random numbers, a function of (seed, its position in `prompts`): neither
    `batch_size` nor the order of work nor prompts appended later change what is drawn for it, up to the rounding of
    the model's own forward. The model is run in eval mode without gradient, and is left in the mode it came in.

    Args:
        model: any causal model of transformers.
        prompts: token ids, at least one each. Repeat a prompt to draw several samples of it; within a batch its
            prefix is computed once, unless layers carry a state.
        max_new_tokens: where a text that does not end by itself is cut off.
        eos_token_id: the token, or tokens, that end a text.
        temperature: logits are divided by it; 0 takes the most likely token, as does one that is too small to
            divide by.
        batch_size: rows at work together.

    Returns:
        New token ids, the closing end token included; a text that was cut off has none.

    Raises:
        UserError: an empty prompt, a token beyond the vocabulary, more tokens than a table of positions has, a number
            out of its range, or logits that are not finite.
    """
    _check(prompts, max_new_tokens, temperature, batch_size)
    if not prompts:
        return []
    causal = unwrap(model)
    _check_model(causal, prompts, max_new_tokens)
    ends = torch.tensor([eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id), device=model.device)
    uniforms = np.random.default_rng(seed).random((len(prompts), max_new_tokens)) if temperature > 0 else None
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), tuple(prompts[i])))
    results: list[list[int]] = [[] for _ in prompts]
    with evaluating(model), torch.inference_mode():
        way = _way(model, causal)
        steady = steady_positions(causal.config.get_text_config())
        if steady is not None and len(prompts[order[-1]]) + max_new_tokens > steady:
            way = _Recomputed  # the rotary embedding changes on the way: cached keys would be those of another one
        for rows in _batches(prompts, order, batch_size, way):
            batch = [prompts[i] for i in rows]
            draws = None if uniforms is None else torch.from_numpy(uniforms[rows]).to(model.device)
            # A prompt of one token looks to some models like a step from a state that is not there.
            work = (_Recomputed if way is _States and len(batch[0]) == 1 else way)(model, batch)
            texts = _generate_batch(work, draws, max_new_tokens, ends, temperature)
            for row, text in zip(rows, texts, strict=True):
                results[row] = text
    return results


def _generate_batch(
    work: _Work, uniforms: Tensor | None, max_new_tokens: int, ends: Tensor, temperature: float
) -> list[list[int]]:
    count = len(work.logits)
    tokens = torch.zeros(count, max_new_tokens, dtype=torch.long)
    lengths = torch.full((count,), max_new_tokens)
    alive = torch.arange(count, device=work.logits.device)  # the rows still at work, as indices into the batch
    unfinished = torch.ones_like(alive, dtype=torch.bool)
    for step in range(max_new_tokens):
        chosen = _choose(work.logits, None if uniforms is None else uniforms[alive, step], temperature)
        tokens[alive.cpu(), step] = chosen.cpu()
        ended = unfinished & torch.isin(chosen, ends)
        lengths[alive[ended].cpu()] = step + 1
        unfinished = unfinished & ~ended
        left = int(unfinished.sum())
        if left == 0 or step + 1 == max_new_tokens:
            break
        if work.shrinks and left < _COMPACT_BELOW * len(alive):
            keep = unfinished.nonzero().squeeze(1)
            work.keep(keep)
            alive, chosen, unfinished = alive[keep], chosen[keep], unfinished[keep]
        work.step(chosen)
    return [tokens[row, : lengths[row]].tolist() for row in range(count)]


def _cache_argument(model: Any) -> str:
    """The name of the key-value cache among the arguments of a model's forward."""
    return "cache" if "cache" in inspect.signature(unwrap(model).forward).parameters else "past_key_values"


class _Work:
    """Rows being written. `logits` (B, V) are those of the next token of each.

    Attributes:
        mixed: whether the prompts of a batch may have different lengths.
        shrinks: whether rows can be let go.
    """

    mixed: ClassVar[bool] = False
    shrinks: ClassVar[bool] = True
    logits: Tensor

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
        self.model = model

    def keep(self, rows: Tensor) -> None:
        """Let go of all rows but these (K,)."""
        raise NotImplementedError

    def step(self, tokens: Tensor) -> None:
        """Write one token (B,) behind each row."""
        raise NotImplementedError


class _KeyValues(_Work):
    """Attention alone: left-padded rows, whose keys and values are ours to repeat and to drop."""

    mixed = True

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
        super().__init__(model, prompts)
        self.length = max(map(len, prompts))
        unique = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
        width = self.length
        padded = any(len(prompt) < width for prompt in unique)
        ids = torch.zeros(len(unique), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(unique):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        ids, mask = ids.to(model.device), mask.to(model.device)
        self.cache = DynamicCache(config=model.config)
        self.mask = mask if padded else None  # None where all lengths are equal
        self._forward(ids, (mask.cumsum(1) - 1).clamp(min=0))
        if len(unique) < len(prompts):
            row_of = {prompt: row for row, prompt in enumerate(unique)}
            expand = torch.tensor([row_of[tuple(prompt)] for prompt in prompts], device=model.device)
            self.keep(expand)
            self.logits = self.logits[expand]

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
            **{_cache_argument(self.model): self.cache},
        )
        self.logits = output.logits[:, -1]


class _States(_Work):
    """Layers that carry a state: rows of one length, and the cache that the model makes, carried from step to step."""

    shrinks = False

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
        super().__init__(model, prompts)
        self.length = 0
        self.carried: dict[str, Any] = {}
        ids = torch.tensor(prompts, device=model.device)
        self._forward(ids)
        if not self.carried:  # a model that fills a cache, but does not return it
            self.length, self.carried = 0, {_cache_argument(model): DynamicCache(config=model.config)}
            self._forward(ids)

    def step(self, tokens: Tensor) -> None:
        self._forward(tokens[:, None])

    def _forward(self, ids: Tensor) -> None:
        # Not every model with a cache counts its positions itself.
        position_ids = torch.arange(self.length, self.length + ids.shape[1], device=ids.device).expand_as(ids)
        output = self.model(input_ids=ids, position_ids=position_ids, use_cache=True, logits_to_keep=1, **self.carried)
        self.length += ids.shape[1]
        returned = next((name for name in _STATES if output.get(name) is not None), None)
        self.carried = self.carried if returned is None else {returned: output[returned]}
        self.logits = output.logits[:, -1]


class _Recomputed(_Work):
    """Any model: rows of one length, each token from a forward over the whole text."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
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


def _batches(
    prompts: Sequence[Sequence[int]], order: list[int], batch_size: int, way: type[_Work]
) -> Iterator[list[int]]:
    """The rows in their order, cut into batches that `way` takes."""
    groups = [order] if way.mixed else [list(group) for _, group in groupby(order, lambda i: len(prompts[i]))]
    for group in groups:
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


# How to write with a model, once that has been tried.
WAYS: weakref.WeakKeyDictionary[Any, type[_Work]] = weakref.WeakKeyDictionary()


def _way(model: PreTrainedModel, causal: Any) -> type[_Work]:
    """How to write with `model`; tried once for a model."""
    if causal not in WAYS:
        ways, proven = _declared(causal)
        found = ways[0] if proven else next((way for way in ways if _reproduces(model, causal, way)), _Recomputed)
        if found is _Recomputed:
            logger.warning("%s: no cache gives the numbers of its plain forward, so every token is computed from the "
                           "whole text: slow", type(causal).__name__)  # fmt: skip
        WAYS[causal] = found
    return WAYS[causal]


def _declared(causal: Any) -> tuple[list[type[_Work]], bool]:
    """The ways to try, by what a model says of its layers, and whether the first is right without a proof."""
    if getattr(causal, "_is_stateful", False):
        return [_States], False
    try:
        layers = DynamicCache(config=causal.config).layers
    except Exception:  # layers that transformers has no cache for
        return [_States], False
    if any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers):
        return [_States], False
    # Trees have shown that there is attention alone, and that positions are as given. A window in the config makes the
    # cache forget besides; that the attention looks no further is sure where layers say so.
    config = causal.config.get_text_config()
    told = getattr(config, "layer_types", None) or getattr(config, "sliding_window", None) is None
    return [_KeyValues, _States], bool(told and passed_as_trees(causal))


def _reproduces(model: PreTrainedModel, causal: Any, way: type[_Work]) -> bool:
    """Whether `way` gives the log-probs of plain forwards behind a few random prompts, and behind what follows them.

    Raises:
        UserError: those of the plain forwards are not finite.
    """
    config, limit = causal.config.get_text_config(), learned_positions(causal)
    window = getattr(config, "sliding_window", None) or 0
    lengths = [*_PROBED, window + 1] if window <= PROBED_WINDOW else _PROBED
    if limit is not None and limit < max(lengths) + _AHEAD:
        return False
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, config.vocab_size, length + _AHEAD).tolist() for length in sorted(lengths)]
    texts.append(texts[-1])  # a repeated prompt

    def logps(logits: Tensor) -> Tensor:
        return logits.double().log_softmax(-1).clamp(min=_FLOOR)

    def plain(ids: list[int]) -> Tensor:
        logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0]
        _refuse_not_finite(logits)
        return logps(logits)

    truth = [plain(text)[-1 - _AHEAD :] for text in texts]
    error = 0.0
    try:
        for batch in _batches([text[:-_AHEAD] for text in texts], list(range(len(texts))), len(texts), way):
            rows, work = batch, way(model, [texts[i][:-_AHEAD] for i in batch])
            for ahead in range(_AHEAD + 1):
                if ahead:
                    work.step(torch.tensor([texts[i][ahead - 1 - _AHEAD] for i in rows], device=model.device))
                off = (logps(work.logits) - torch.stack([truth[i][ahead] for i in rows])).abs().max()
                error = float(off) if not off <= error else error
                if ahead == 0 and way.shrinks and len(rows) > 1:
                    rows = rows[1:]
                    work.keep(torch.arange(1, len(batch), device=model.device))
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:  # whatever a model does with a call it was not written for
        logger.info("%s does not write by %s: %s", type(causal).__name__, way.__name__, first_line(problem))
        return False
    # A cache that is not used at all is as far off as the last token alone; a fresh model's logits depend so little on
    # the tokens before that a tolerance in nats would not show it.
    forgotten = float((plain(texts[-1][-1:])[-1] - truth[-1][-1]).abs().max())
    return error <= min(rounding(model), forgotten / 4)


def _choose(logits: Tensor, uniforms: Tensor | None, temperature: float) -> Tensor:
    """(B,) next tokens from logits (B, V): the largest, or the inverse of the cumulative distribution at `uniforms`.

    Raises:
        UserError: logits that are not finite.
    """
    if uniforms is None:
        chosen = logits.argmax(-1)
        _refuse_not_finite(logits.gather(-1, chosen[:, None]))  # NaN counts as the largest
        return chosen
    # The running sum is float64: in float32 the rounding of 150,000 terms is as large as the rare tokens' shares.
    cumulative = torch.softmax(logits.float() / temperature, -1).double().cumsum(-1)
    targets = uniforms[:, None] * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, targets, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)
    known = cumulative[:, -1].isfinite()
    if not known.all():  # the logits are not finite, or no longer once divided by a tiny temperature
        _refuse_not_finite(logits)
        drawn = torch.where(known, drawn, logits.argmax(-1))
    return drawn


def _refuse_not_finite(logits: Tensor) -> None:
    """Refuse rows (..., V) without a largest logit; -inf beside it rules a token out."""
    if not logits.amax(-1).isfinite().all():
        raise UserError("the model's logits are not finite (NaN or infinity), so no token can be chosen: its weights "
                        "are not finite, or too large for the precision that it runs in")  # fmt: skip


def _check(prompts: Sequence[Sequence[int]], max_new_tokens: int, temperature: float, batch_size: int) -> None:
    if any(len(prompt) == 0 for prompt in prompts):
        raise UserError("a prompt without a token cannot be continued; give it at least the beginning-of-text token")
    if max_new_tokens < 1 or batch_size < 1:
        raise UserError(f"max_new_tokens and batch_size must be at least 1, got {max_new_tokens} and {batch_size}")
    if not 0 <= temperature < math.inf:
        raise UserError(f"temperature must be 0 (most likely token) or more, and finite, got {temperature}")


def _check_model(causal: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Refuse what a model's tables have no row for, before any time goes into it."""
    name = type(causal).__name__
    vocab = getattr(causal.get_input_embeddings(), "num_embeddings", causal.config.get_text_config().vocab_size)
    least, most = min(map(min, prompts)), max(map(max, prompts))
    if least < 0 or most >= vocab:
        raise UserError(f"token id {most if most >= vocab else least} of a prompt is beyond the vocabulary of {name}, "
                        f"{vocab} tokens: tokenizer and model do not belong together")  # fmt: skip
    limit, longest = learned_positions(causal), max(map(len, prompts))
    if limit is not None and longest + max_new_tokens - 1 > limit:  # the last token is never fed
        room = limit + 1 - longest
        remedy = f"evaluation.max_new_tokens to {room} or less, or " if room > 0 else ""
        raise UserError(f"a prompt of {longest} tokens and {max_new_tokens} new ones go beyond the {limit} positions "
                        f"that {name} has learned: lower {remedy}data.max_length")  # fmt: skip
