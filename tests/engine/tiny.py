"""Tiny random models of real families, and what they are judged by: their own plain forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from prefopt.data.tokens import TokenRecord, as_given
from prefopt.plugin import Data

VOCAB = 97
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 2048,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def config(family: str, **extra: Any) -> Any:
    """A tiny config of a family that speaks the common names."""
    return AutoConfig.for_model(family, **{**COMMON, **extra})


def build(settings: Any, *, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 4.0) -> Any:
    """A random model in evaluation mode. Matrices are `scale` times the usual size, or attention would hardly show."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(settings)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "embed" not in name and "wte" not in name:
                weight.mul_(scale)
    return model.to(dtype).eval()


def model(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **extra: Any) -> Any:
    """`build` of `config`."""
    return build(config(family, **extra), seed=seed, dtype=dtype)


def ids(rng: np.random.Generator, n: int) -> Any:
    return rng.integers(3, VOCAB, n).astype(np.int32)


def records(shapes: Sequence[tuple[int, Sequence[int]]], seed: int = 0) -> list[TokenRecord]:
    """Random records from (prompt length, completion lengths)."""
    rng = np.random.default_rng(seed)
    kinds = {1: Data.DEMONSTRATIONS, 2: Data.PAIRS}
    return [
        TokenRecord(
            id=f"r{i}",
            kind=kinds.get(len(lengths), Data.LISTS),
            prompt=ids(rng, prompt),
            completions=tuple(ids(rng, n) for n in lengths),
        )
        for i, (prompt, lengths) in enumerate(shapes)
    ]


def plain_logps(causal: Any, prompt: Any, completion: Any) -> torch.Tensor:
    """(n,) log-probs of one completion: one unpadded forward of the model's own, a float64 log-softmax."""
    tokens = torch.from_numpy(np.concatenate((prompt, completion)).astype(np.int64))[None]
    logits = causal(input_ids=tokens, use_cache=False).logits[0, len(prompt) - 1 : -1].double()
    logp: torch.Tensor = logits.log_softmax(-1).gather(1, tokens[0, len(prompt) :, None])[:, 0]
    return logp


def plain(causal: Any, data: Sequence[TokenRecord]) -> list[list[np.ndarray[Any, Any]]]:
    """`plain_logps` of every completion of every record."""
    with torch.no_grad():
        return [[plain_logps(causal, r.prompt, c).numpy() for c in r.completions] for r in data]


def with_spans(data: Sequence[TokenRecord], seed: int = 0) -> list[TokenRecord]:
    """The records with about half of the tokens of each completion given; the last one is always trained."""
    rng = np.random.default_rng(seed)

    def spans(completion: Any) -> Any:
        given = rng.random(len(completion)) < 0.5
        given[-1] = False
        return np.where(given, as_given(completion), completion).astype(np.int32)

    return [replace(record, completions=tuple(map(spans, record.completions))) for record in data]
