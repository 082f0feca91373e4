"""How long a sequence a model can take before its numbers change or its positions end."""

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
    """How many positions the model has an embedding for; None where positions are not looked up in a table."""
    base = getattr(model, model.base_model_prefix, model)
    for owner in (base, getattr(base, "decoder", None)):
        for name in ("wpe", "embed_positions", "position_embeddings"):  # GPT-2 and its like; OPT, BioGPT; others
            table = getattr(owner, name, None)
            if isinstance(table, nn.Embedding):
                return table.num_embeddings - int(getattr(table, "offset", 0))
    return None


def steady_positions(config: Any) -> int | None:
    """The length up to which a position's rotary embedding is always the same, where there is such a limit."""
    rope = getattr(config, "rope_parameters", None) or {}
    variants = [rope] if "rope_type" in rope else [v for v in rope.values() if isinstance(v, dict)]
    limits = [
        int(v.get("original_max_position_embeddings") or config.max_position_embeddings)
        for v in variants
        if v.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(limits, default=None)
