"""Samples from a causal language model in batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefopt.data.images.inputs import inputs_of
from prefopt.engine.decoders import Decoder, Mixture, PlainDecoder, StateDecoder, batches, choose_decoder
from prefopt.engine.forward import evaluating, unwrap
from prefopt.engine.image_decoders import choose_image_decoder
from prefopt.engine.limits import learned_positions
from prefopt.engine.next_token import draw, most_likely, scored
from prefopt.errors import UserError

Floats = NDArray[np.floating[Any]]
# Finished rows leave the batch when fewer than this share of its rows is still being written.
COMPACT_BELOW = 0.8
MOST_PICTURED = 64  # rows of a batch of prompts with images, whose pixels take memory


class Blend(NamedTuple):
    """A model whose next tokens are drawn from p^(1 - share) q^share, normalized: p of `model`, q of `other`."""

    model: Any
    other: Any
    share: float


class SampledText(NamedTuple):
    """A text as it was drawn.

    Attributes:
        tokens: new token ids, the closing end token included; a text that was cut off has none.
        logps: (n,) the model's log-prob of each token, in nats, at the temperature that `sample` was asked to score at.
    """

    tokens: list[int]
    logps: Floats
    sampler_logps: Floats | None = None  # those of another sampler that drew them, where `logps` are the model's own


def generate(
    model: Any,
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
    the model's own forward. The model runs in evaluation mode without gradient, and gets its own mode back.

    Args:
        model: a causal language model of transformers.
        prompts: token ids, at least one each. Repeat a prompt to draw several samples of it; within a batch its
            prefix is computed once, unless layers carry a state.
        max_new_tokens: length at which a text that does not end by itself is cut off.
        eos_token_id: the token, or tokens, that end a text.
        temperature: logits are divided by it; 0, or a value too small to divide by, takes the most likely token.
        batch_size: rows of a batch.

    Returns:
        New token ids, the closing end token included; a text that was cut off has none.

    Raises:
        UserError: an empty prompt, a token beyond the vocabulary, more tokens than a table of positions has, a number
            out of its range, or logits that are not finite.
    """
    uniforms = np.random.default_rng(seed).random((len(prompts), max(max_new_tokens, 0))) if temperature > 0 else None
    written = _written(model, prompts, uniforms, max_new_tokens, eos_token_id, temperature, batch_size)
    return [tokens for tokens, _ in written]


def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    uniforms: NDArray[np.float64],
    *,
    eos_token_id: int | Sequence[int],
    temperature: float = 1.0,
    scored_at: float = 1.0,
    batch_size: int = 512,
) -> list[SampledText]:
    """One continuation of every prompt from given random numbers, with the log-prob of each of its tokens.

    Args:
        model: a causal language model, or a `Blend` of two.
        prompts, eos_token_id, temperature, batch_size: as of `generate`; a temperature above 0.
        uniforms: (number of prompts, most new tokens) in [0, 1): entry (i, t) draws token t of text i.
        scored_at: the temperature of the distribution that log-probs are of, whatever the texts are drawn at.

    Raises:
        UserError: as `generate`.
    """
    written = _written(model, prompts, uniforms, uniforms.shape[1], eos_token_id, temperature, batch_size,
                       scored_at=scored_at)  # fmt: skip
    return [SampledText(tokens, logps) for tokens, logps in written if logps is not None]


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a text: the model's own and the tokenizer's."""
    declared = getattr(unwrap(model).generation_config, "eos_token_id", None)
    ends = {declared} if isinstance(declared, int) else set(declared or ())
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    return sorted(ends)


def _written(
    model: Any, prompts: Sequence[Sequence[int]], uniforms: NDArray[np.float64] | None, max_new_tokens: int,
    eos_token_id: int | Sequence[int], temperature: float, batch_size: int, *, scored_at: float | None = None,
) -> list[tuple[list[int], Floats | None]]:  # fmt: skip
    """Tokens of every text and, where a temperature is given for them, their log-probs."""
    _check(prompts, max_new_tokens, temperature, batch_size)
    if not prompts:
        return []
    blend = model if isinstance(model, Blend) else None
    model = model if blend is None else blend.model
    _check_model(unwrap(model), prompts, max_new_tokens)
    ends = torch.tensor([eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id), device=model.device)
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), tuple(prompts[i])))
    results: list[tuple[list[int], Floats | None]] = [([], None) for _ in prompts]
    inputs = inputs_of(unwrap(model))  # a token that stands for an image would ask for one
    unwritten = torch.tensor(inputs.reserved, device=model.device) if inputs is not None else None
    with evaluating(model), torch.inference_mode():
        if blend is not None:
            blend.other.eval()
        for decoder, rows in _batches(model, prompts, order, batch_size, max_new_tokens):
            draws = None if uniforms is None else torch.from_numpy(uniforms[rows]).to(model.device)
            # To some models a prompt of one token looks like a step from a state that is not there.
            stepless = decoder is StateDecoder and len(prompts[rows[0]]) == 1
            kind, given = PlainDecoder if stepless else decoder, [prompts[i] for i in rows]
            alone = kind(model, given)
            texts = alone if blend is None else Mixture(alone, kind(blend.other, given), blend.share)
            written = _write(texts, draws, max_new_tokens, ends, temperature, scored_at, unwritten)
            for row, text in zip(rows, written, strict=True):
                results[row] = text
    return results


def _batches(
    model: Any, prompts: Sequence[Sequence[int]], order: list[int], batch_size: int, max_new_tokens: int
) -> Iterator[tuple[type[Decoder], list[int]]]:
    """The places of prompts in batches, each with the decoder that continues it."""
    pictured = [i for i in order if min(prompts[i]) < 0]
    plain = [i for i in order if min(prompts[i]) >= 0] if pictured else order
    if plain:
        decoder = choose_decoder(model, len(prompts[plain[-1]]) + max_new_tokens)
        for rows in batches(prompts, plain, batch_size, decoder):
            yield decoder, rows
    if pictured:
        decoder = choose_image_decoder(model)
        for rows in batches(prompts, pictured, min(batch_size, MOST_PICTURED), decoder):
            yield decoder, rows


def _write(
    texts: Decoder | Mixture,
    uniforms: Tensor | None,
    max_new_tokens: int,
    ends: Tensor,
    temperature: float,
    scored_at: float | None,
    unwritten: Tensor | None,
) -> list[tuple[list[int], Floats | None]]:
    """The tokens that a batch of texts goes on with, none of `unwritten`, and their log-probs."""
    count = len(texts.logits)
    tokens = torch.zeros(count, max_new_tokens, dtype=torch.long)
    wide = torch.float64 if texts.logits.dtype == torch.float64 else torch.float32
    known = torch.zeros(count, max_new_tokens, dtype=wide) if scored_at is not None else None
    lengths = torch.full((count,), max_new_tokens)
    alive = torch.arange(count, device=texts.logits.device)  # the rows still in the decoder, as places in the batch
    unfinished = torch.ones_like(alive, dtype=torch.bool)
    for step in range(max_new_tokens):
        logits = texts.logits if unwritten is None else texts.logits.index_fill(-1, unwritten, -torch.inf)
        logp: Tensor | None = None
        if uniforms is None:
            chosen = most_likely(logits)
        else:
            scored_too = scored_at if unwritten is None else None
            chosen, logp = draw(logits, uniforms[alive, step], temperature, scored_too)
        tokens[alive.cpu(), step] = chosen.cpu()
        if known is not None and scored_at is not None:
            logp = scored(texts.logits, chosen, scored_at) if logp is None else logp
            known[alive.cpu(), step] = logp.cpu()
        ended = unfinished & torch.isin(chosen, ends)
        lengths[alive[ended].cpu()] = step + 1
        unfinished = unfinished & ~ended
        left = int(unfinished.sum())
        if left == 0 or step + 1 == max_new_tokens:
            break
        if texts.shrinks and left < COMPACT_BELOW * len(alive):
            keep = unfinished.nonzero().squeeze(1)
            texts.keep(keep)
            alive, chosen, unfinished = alive[keep], chosen[keep], unfinished[keep]
        texts.step(chosen)
    return [
        (tokens[row, : lengths[row]].tolist(), None if known is None else known[row, : lengths[row]].numpy())
        for row in range(count)
    ]


def _check(prompts: Sequence[Sequence[int]], max_new_tokens: int, temperature: float, batch_size: int) -> None:
    if any(len(prompt) == 0 for prompt in prompts):
        raise UserError("a prompt without a token cannot be continued; give it at least the beginning-of-text token")
    if max_new_tokens < 1 or batch_size < 1:
        raise UserError(f"max_new_tokens and batch_size must be at least 1, got {max_new_tokens} and {batch_size}")
    if not 0 <= temperature < math.inf:
        raise UserError(f"temperature must be 0 (most likely token) or more, and finite, got {temperature}")


def _check_model(causal: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Check that the model's tables have a row for every token and position, before anything is computed."""
    name = type(causal).__name__
    vocab = getattr(causal.get_input_embeddings(), "num_embeddings", causal.config.get_text_config().vocab_size)
    pictured = any(min(prompt) < 0 for prompt in prompts) and inputs_of(causal) is not None
    least, most = 0 if pictured else min(map(min, prompts)), max(map(max, prompts))
    if least < 0 or most >= vocab:
        raise UserError(f"token id {most if most >= vocab else least} of a prompt is beyond the vocabulary of {name}, "
                        f"{vocab} tokens: tokenizer and model do not belong together")  # fmt: skip
    limit, longest = learned_positions(causal), max(map(len, prompts))
    if limit is not None and longest + max_new_tokens - 1 > limit:  # the last token is never fed
        room = limit + 1 - longest
        remedy = f"evaluation.max_new_tokens to {room} or less, or " if room > 0 else ""
        raise UserError(f"a prompt of {longest} tokens and {max_new_tokens} new ones go beyond the {limit} positions "
                        f"that {name} has learned: lower {remedy}data.max_length")  # fmt: skip
