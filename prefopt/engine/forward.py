"""The model's forward, taught to score a row: `model(prefopt_row=row)` returns log-probs instead of logits.

It is the forward of the model itself, not a function beside it, so that whatever wraps the model (DDP, FSDP, PEFT,
autocast) sees the call.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefopt.engine.attention import NAME
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
        UserError: the model has no output embedding, so it cannot predict tokens.
    """
    causal = unwrap(model)
    if causal.get_output_embeddings() is None:
        raise UserError(f"{type(causal).__name__} has no output embedding: give a causal language model")
    own = causal.__dict__.setdefault("_prefopt_attention", causal.config._attn_implementation)
    attention = NAME if layout == "tree" else own
    if causal.config._attn_implementation != attention:
        causal.set_attn_implementation(attention)
    if not hasattr(causal.forward, "prefopt"):
        causal.forward = types.MethodType(_scoring(causal.forward), causal)
    return model


def uninstall(model: Any) -> Any:
    """Undo `install`."""
    causal = unwrap(model)
    if "_prefopt_attention" in causal.__dict__:
        causal.set_attn_implementation(causal.__dict__.pop("_prefopt_attention"))
    if hasattr(causal.forward, "prefopt"):
        del causal.forward
    return model


def unwrap(model: Any) -> Any:
    """The causal language model inside DDP, FSDP and PEFT wrappers."""
    while True:
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif type(model).__module__.startswith("torch.nn.parallel") or hasattr(model, "_fsdp_wrapped_module"):
            model = model.module
        else:
            return model


def _scoring(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, *args: Any, prefopt_row: Row | None = None, prefopt_ask: Ask | None = None, **kw: Any) -> Any:
        if prefopt_row is None:
            return original(*args, **kw)
        return _score_row(self, prefopt_row, prefopt_ask or Ask())

    forward.prefopt = True  # type: ignore[attr-defined]
    return forward


def _score_row(model: Any, row: Row, ask: Ask) -> TokenStats | Tensor:
    base = getattr(model, model.base_model_prefix)
    call: dict[str, Any] = {"input_ids": row.input_ids, "use_cache": False}
    if row.tree is not None:
        # A 4D mask is passed through by transformers as it is; the tree attention ignores it.
        call["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=row.input_ids.device)
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
