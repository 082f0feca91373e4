"""Finds how long a sequence may be before a model's positions end, or its rotary embedding changes."""

from __future__ import annotations

from typing import Any

from torch import nn

from prefopt.errors import UserError


def check_length(model: Any, tokens: int, name: str = "a sequence") -> None:
    """Check that the model has positions for a sequence of so many tokens.

    Raises:
        UserError: it has not; the message names the sequence and the remedy.
    """
    limit = steady_positions(model.config.get_text_config())
    if limit is not None and tokens > limit:
        raise UserError(f"{name} of {tokens} tokens: beyond {limit} the rotary embedding of this model changes with "
                        "the longest sequence of a forward, so log-probs would depend on the batch; set "
                        f"data.max_length={limit}")  # fmt: skip
    limit = learned_positions(model)
    if limit is not None and tokens > limit:
        raise UserError(f"{name} of {tokens} tokens: the model has learned {limit} positions; set "
                        f"data.max_length={limit}")  # fmt: skip


def learned_positions(model: Any) -> int | None:
    """The number of positions that a model has an embedding for; None if it does not look them up in a table."""
    base = getattr(model, model.base_model_prefix, model)
    for owner in (base, getattr(base, "decoder", None)):
        for name in ("wpe", "embed_positions", "position_embeddings"):  # GPT-2 and its like; OPT, BioGPT; others
            table = getattr(owner, name, None)
            if isinstance(table, nn.Embedding):
                return table.num_embeddings - int(getattr(table, "offset", 0))
    return None


def steady_positions(config: Any) -> int | None:
    """The length up to which a position's rotary embedding is always the same; None if it always is."""
    rope = getattr(config, "rope_parameters", None) or {}
    variants = [rope] if "rope_type" in rope else [v for v in rope.values() if isinstance(v, dict)]
    limits = [
        int(v.get("original_max_position_embeddings") or config.max_position_embeddings)
        for v in variants
        if v.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(limits, default=None)
