"""Sampling from a causal language model: batched, left-padded, with a key-value cache that shrinks as rows finish."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from prefopt.errors import UserError

_COMPACT_BELOW = 0.8  # finished rows leave the batch when fewer than this share of its rows is still being written


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
        model: any causal model of transformers that takes `position_ids` and keeps a `DynamicCache`.
        prompts: token ids, at least one each. Repeat a prompt to draw several samples of it; within a batch its
            prefix is computed once.
        max_new_tokens: where a text that does not end by itself is cut off.
        eos_token_id: the token, or tokens, that end a text.
        temperature: logits are divided by it; 0 takes the most likely token.
        batch_size: rows at work together.

    Returns:
        New token ids, the closing end token included; a text that was cut off has none.

    Raises:
        UserError: an empty prompt, or a number out of its range.
    """
    _check(prompts, max_new_tokens, temperature, batch_size)
    ends = torch.tensor([eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id), device=model.device)
    uniforms = np.random.default_rng(seed).random((len(prompts), max_new_tokens)) if temperature > 0 else None
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), tuple(prompts[i])))
    results: list[list[int]] = [[] for _ in prompts]
    with _evaluating(model), torch.inference_mode():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            draws = None if uniforms is None else torch.from_numpy(uniforms[rows]).to(model.device)
            texts = _generate_batch(model, [prompts[i] for i in rows], draws, max_new_tokens, ends, temperature)
            for row, text in zip(rows, texts, strict=True):
                results[row] = text
    return results


def _generate_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    uniforms: Tensor | None,
    max_new_tokens: int,
    ends: Tensor,
    temperature: float,
) -> list[list[int]]:
    logits, cache, mask = _prefill(model, prompts)
    count = len(prompts)
    tokens = torch.zeros(count, max_new_tokens, dtype=torch.long)
    lengths = torch.full((count,), max_new_tokens)
    alive = torch.arange(count, device=model.device)  # the rows still at work, as indices into the batch
    unfinished = torch.ones_like(alive, dtype=torch.bool)
    for step in range(max_new_tokens):
        chosen = _choose(logits, None if uniforms is None else uniforms[alive, step], temperature)
        tokens[alive.cpu(), step] = chosen.cpu()
        ended = unfinished & torch.isin(chosen, ends)
        lengths[alive[ended].cpu()] = step + 1
        unfinished = unfinished & ~ended
        left = int(unfinished.sum())
        if left == 0 or step + 1 == max_new_tokens:
            break
        if left < _COMPACT_BELOW * len(alive):
            keep = unfinished.nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            alive, chosen, unfinished = alive[keep], chosen[keep], unfinished[keep]
            mask = None if mask is None else mask[keep]
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
            position_ids = mask.sum(1, keepdim=True) - 1
        else:
            position_ids = torch.full((len(alive), 1), len(prompts[0]) + step, device=model.device)
        output = model(
            input_ids=chosen[:, None],
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits = output.logits[:, -1]
    return [tokens[row, : lengths[row]].tolist() for row in range(count)]


def _prefill(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, DynamicCache, Tensor | None]:
    """Next-token logits (B, V), the cache, and the left-padded mask (B, P), None where all lengths are equal."""
    unique = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
    width = max(map(len, unique))
    padded = any(len(prompt) < width for prompt in unique)
    ids = torch.zeros(len(unique), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(unique):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    cache = DynamicCache(config=model.config)
    output = model(
        input_ids=ids,
        attention_mask=mask if padded else None,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    logits: Tensor = output.logits[:, -1]
    if len(unique) < len(prompts):
        row_of = {prompt: row for row, prompt in enumerate(unique)}
        expand = torch.tensor([row_of[tuple(prompt)] for prompt in prompts], device=model.device)
        cache.batch_select_indices(expand)
        logits, mask = logits[expand], mask[expand]
    return logits, cache, mask if padded else None


def _choose(logits: Tensor, uniforms: Tensor | None, temperature: float) -> Tensor:
    """(B,) next tokens from logits (B, V): the largest, or the inverse of the cumulative distribution at `uniforms`."""
    if uniforms is None:
        return logits.argmax(-1)
    # The running sum is float64: in float32 the rounding of 150,000 terms is as large as the rare tokens' shares.
    cumulative = torch.softmax(logits.float() / temperature, -1).double().cumsum(-1)
    targets = uniforms[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, targets, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _check(prompts: Sequence[Sequence[int]], max_new_tokens: int, temperature: float, batch_size: int) -> None:
    if any(len(prompt) == 0 for prompt in prompts):
        raise UserError("a prompt without a token cannot be continued; give it at least the beginning-of-text token")
    if max_new_tokens < 1 or batch_size < 1:
        raise UserError(f"max_new_tokens and batch_size must be at least 1, got {max_new_tokens} and {batch_size}")
    if not temperature >= 0:
        raise UserError(f"temperature must be 0 (most likely token) or more, got {temperature}")
