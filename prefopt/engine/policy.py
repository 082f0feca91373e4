"""The model's forward, taught to score a row: `model(prefopt_row=row)` returns log-probs instead of logits.

It is the forward of the model itself, not a function beside it, so that whatever wraps the model (DDP, FSDP, PEFT,
autocast) sees the call.
"""

from __future__ import annotations

import types
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prefopt.engine.attention import NAME, OPEN
from prefopt.engine.cpu.fused import fuse, unfuse
from prefopt.engine.cpu.matmul import restore, speed_up
from prefopt.engine.head import Head, Reference, TokenStats, token_stats
from prefopt.engine.layout import Layout, Row
from prefopt.errors import UserError
from prefopt.plugin import Vocab


class Ask(NamedTuple):
    """What to compute for a row besides log-probs."""

    vocab: frozenset[Vocab] = frozenset()
    entropy: bool = False
    reference: Reference | None = None
    hidden_only: bool = False  # the hidden states at the predicting positions, for a `Reference`


def install(model: Any, layout: Layout) -> Any:
    """Give a causal language model the scoring forward, and the attention that `layout` needs. Returns the model.

    Raises:
        UserError: something that cannot predict tokens from their predecessors alone.
    """
    causal = unwrap(model)
    if not hasattr(causal, "config") or causal.get_output_embeddings() is None or causal.config.is_encoder_decoder:
        raise UserError(f"{type(causal).__name__} is not a causal language model with an output embedding")
    if any(c.is_prompt_learning for c in getattr(model, "peft_config", {}).values()):
        raise UserError("prompt and prefix tuning are not supported: their virtual tokens stand before every "
                        "sequence; use LoRA or another adapter inside the layers")  # fmt: skip
    state = vars(causal)
    own = state.setdefault("_prefopt_attention", causal.config._attn_implementation)
    attention = NAME if layout == "tree" else own
    if causal.config._attn_implementation != attention:
        causal.set_attn_implementation(attention)
    if "_prefopt_forward" not in state:
        state["_prefopt_forward"] = state.get("forward")  # what device hooks and the like have put there
        causal.forward = types.MethodType(_forward, causal)
    speed_up(model)
    fuse(model)
    return model


def uninstall(model: Any) -> Any:
    """Undo `install`."""
    unfuse(model)
    restore(model)
    causal = unwrap(model)
    state = vars(causal)
    if "_prefopt_attention" in state:
        causal.set_attn_implementation(state.pop("_prefopt_attention"))
    if "_prefopt_forward" in state:
        original = state.pop("_prefopt_forward")
        del causal.forward
        if original is not None:
            causal.forward = original
    return model


def unwrap(model: Any) -> Any:
    """The causal language model inside DDP, FSDP, DeepSpeed and PEFT wrappers."""
    while True:
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif type(model).__module__.startswith(("torch.nn.parallel", "deepspeed.")) or hasattr(
            model, "_fsdp_wrapped_module"
        ):
            model = model.module
        else:
            return model


def _forward(self: Any, *args: Any, prefopt_row: Row | None = None, prefopt_ask: Ask | None = None, **kw: Any) -> Any:
    if prefopt_row is not None:
        return _score_row(self, prefopt_row, prefopt_ask or Ask())
    # Looked up now, not kept in a closure: a deep copy of the model must run its own weights.
    original = vars(self)["_prefopt_forward"]
    return original(*args, **kw) if original is not None else type(self).forward(self, *args, **kw)


def _score_row(model: Any, row: Row, ask: Ask) -> TokenStats | Tensor:
    _refuse_row(model, row)
    base = getattr(model, model.base_model_prefix, None) or model.model  # Llama 4 has a prefix that names nothing
    call: dict[str, Any] = {"input_ids": row.input_ids, "use_cache": False}
    if row.tree is not None:
        call["attention_mask"] = torch.ones(OPEN, dtype=torch.bool, device=row.input_ids.device)
        call["position_ids"] = row.position_ids
        call["prefopt_tree"] = row.tree
    else:
        call["attention_mask"] = row.attention_mask
    hidden = base(**call)[0]
    hidden = hidden.reshape(-1, hidden.shape[-1]).index_select(0, row.source)
    if ask.hidden_only:
        return hidden  # type: ignore[no-any-return]
    head = Head.of(model)
    return token_stats(hidden, row.target, head, ask.vocab, entropy=ask.entropy, reference=ask.reference)


def _refuse_row(model: Any, row: Row) -> None:
    """Refuse what torch would compute without complaint, but wrongly."""
    head = model.get_output_embeddings()
    size = getattr(head, "out_features", None)
    if size is not None and row.max_id >= size:
        raise UserError(f"token id {row.max_id} is beyond the model's vocabulary of {size}: tokenizer and model do not "
                        "belong together (or tokens were added without `resize_token_embeddings`)")  # fmt: skip
    refuse_length(model, row.longest)


def refuse_length(model: Any, tokens: int, name: str = "a sequence") -> None:
    """Refuse a sequence of so many tokens where the model's positions end before.

    Raises:
        UserError: with the sequence's name and the remedy.
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
