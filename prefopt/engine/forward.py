"""Scores one row with a causal language model: the hidden states of its decoder, then its output layer in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from logging import ERROR
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from prefopt.engine.attention import NAME, OPEN
from prefopt.engine.head import Head, Reference, TokenStats, token_stats
from prefopt.engine.image_arguments import image_arguments
from prefopt.engine.layout import Layout, Row
from prefopt.engine.limits import check_length
from prefopt.engine.router import router_load
from prefopt.errors import UserError
from prefopt.plugin import Vocab


@dataclass(frozen=True, kw_only=True, eq=False)
class Options:
    """What to compute for a row besides log-probs.

    Attributes:
        vocab: statistics over the vocabulary; those of `BESIDE_REFERENCE` need `reference`.
        entropy: also the entropy of each token's distribution.
        reference: hidden states and head of the reference.
        epsilon: the exponent of `Vocab.LOG_AWAY` and `LOG_TOWARD`.
        temperature: logits are divided by it.
        hidden_only: return the hidden states at the predicting positions, from which a `Reference` is made.
        values: also the estimates of the policy's value model.
        router: also the load of a mixture of experts.
    """

    vocab: frozenset[Vocab] = frozenset()
    entropy: bool = False
    reference: Reference | None = None
    epsilon: float | None = None
    temperature: float = 1.0
    hidden_only: bool = False
    values: bool = False
    router: bool = False


PLAIN = Options()


def score_row(causal: Any, row: Row, options: Options = PLAIN) -> TokenStats | Tensor:
    """Statistics of each scored token of `row`, or hidden states (N, H) with `options.hidden_only`.

    Args:
        causal: a causal language model, whose attention is that of the row's layout (`attention_of`); of a reward
            model the score at each position stands in place of the log-prob.
        row: on the model's device.
        options: what to compute.

    Raises:
        UserError: a token id or a length that torch would accept, with wrong results.
    """
    _check_row(causal, row)
    decoder = decoder_of(causal)
    call: dict[str, Any] = {"input_ids": row.input_ids, "use_cache": False}
    if row.tree is not None:
        if attention_name(causal) != NAME:  # any other would ignore the tree
            raise RuntimeError("this model has no tree attention: was its policy closed?")
        call["attention_mask"] = torch.ones(OPEN, dtype=torch.bool, device=row.input_ids.device)
        call["position_ids"] = row.position_ids
        call["prefopt_tree"] = row.tree
    else:
        call["attention_mask"] = row.attention_mask
    if row.images is not None:
        call |= image_arguments(decoder, row)
    if options.router:
        call["output_router_logits"] = True
    output = decoder(**call)
    hidden: Tensor = output[0]
    hidden = hidden.reshape(-1, hidden.shape[-1]).index_select(0, row.source)
    if options.hidden_only:
        return hidden
    if is_reward_model(causal):
        scores: Tensor = causal.score(hidden)[:, 0]
        stats = TokenStats(scores.to(torch.promote_types(scores.dtype, torch.float32)))
    else:
        head = replace(Head.of(causal), temperature=options.temperature)
        stats = token_stats(hidden, row.target, head, options.vocab, entropy=options.entropy,
                            reference=options.reference, epsilon=options.epsilon)  # fmt: skip
    return stats._replace(router=router_load(causal, output, row)) if options.router else stats


def decoder_of(causal: Any) -> Any:
    """The model below the output layer."""
    return getattr(causal, causal.base_model_prefix, None) or causal.model  # Llama 4's prefix names nothing


def unwrap(model: Any) -> Any:
    """The causal language model inside a `Policy`, PEFT and data-parallel wrappers."""
    while True:
        if hasattr(model, "get_base_model"):  # PEFT, Policy
            model = model.get_base_model()
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def is_reward_model(causal: Any) -> bool:
    """Whether a model, unwrapped, is a sequence classifier with one output: a score at each position."""
    return isinstance(getattr(causal, "score", None), nn.Module) and causal.config.num_labels == 1


def check_model(model: Any) -> None:
    """Check that a model reads tokens from left to right, and predicts tokens or gives one score.

    Raises:
        UserError: it does not.
    """
    causal = unwrap(model)
    reads = hasattr(causal, "config") and not causal.config.is_encoder_decoder
    if not reads or (causal.get_output_embeddings() is None and not is_reward_model(causal)):
        raise UserError(f"{type(causal).__name__} is not a causal language model with an output embedding")
    if any(c.is_prompt_learning for c in getattr(model, "peft_config", {}).values()):
        raise UserError("prompt and prefix tuning are not supported, because their virtual tokens stand before every "
                        "sequence: use LoRA or another adapter inside the layers")  # fmt: skip


def attention_name(causal: Any) -> str:
    """The name of a model's attention."""
    # upstream: transformers made the setter public, not the getter (huggingface/transformers#38974)
    name: str = causal.config.get_text_config()._attn_implementation
    return name


def set_attention(causal: Any, name: str) -> str:
    """Give a model the attention of this name; returns the name of the one that it had."""
    before = attention_name(causal)
    if before != name:
        verbosity = logging.get_verbosity()
        logging.set_verbosity(ERROR)  # the gates find out where it cannot be set
        try:
            causal.set_attn_implementation({part: name} if (part := _text_part(causal.config)) else name)
        finally:
            logging.set_verbosity(verbosity)
    return before


def _text_part(config: Any) -> str | None:
    """The name, in the config of a model with several parts, of that of its language model."""
    text = config.get_text_config()
    return next((name for name in config.sub_configs if getattr(config, name, None) is text), None)


@contextmanager
def attention_of(causal: Any, layout: Layout) -> Iterator[None]:
    """Give a model the attention that a layout needs (ours for trees, its own for padded sequences) for a while."""
    before = set_attention(causal, NAME) if layout == "tree" else None
    try:
        yield
    finally:
        if before is not None:
            set_attention(causal, before)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for a while; every module then gets its own mode back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _check_row(causal: Any, row: Row) -> None:
    embeddings = causal.get_input_embeddings() if is_reward_model(causal) else causal.get_output_embeddings()
    size = getattr(embeddings, "num_embeddings", getattr(embeddings, "out_features", None))
    if size is not None and row.max_id >= size:
        raise UserError(f"token id {row.max_id} is beyond the model's vocabulary of {size}: tokenizer and model do not "
                        "belong together (or tokens were added without `resize_token_embeddings`)")  # fmt: skip
    check_length(causal, row.longest)
