"""Computes the weights, FLOPs and activations of a decoder from the sizes in its `config.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefopt.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A dense decoder. Sizes in elements.

    Attributes:
        hidden: width H of the residual stream.
        layers: L.
        heads, kv_heads, head_dim: of the attention; A = heads * head_dim, K = kv_heads * head_dim.
        inner: width I of the MLP.
        vocab: V.
        gated: the MLP has a gate, and so three matrices instead of two.
        tied: input and output embedding are one matrix.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocab: int
    gated: bool = True
    tied: bool = False

    @classmethod
    def of(cls, config: Any) -> Shape:
        """Read the sizes from a transformers config.

        Raises:
            UserError: a model with experts, or a config that lacks a size.
        """
        get = getattr
        if any(get(config, name, None) for name in ("num_local_experts", "num_experts", "n_routed_experts")):
            raise UserError(
                "this model has experts, and only dense decoders can be planned without weights: give model.path"
            )
        inner = get(config, "intermediate_size", None) or get(config, "n_inner", None) or 4 * config.hidden_size
        try:
            heads = config.num_attention_heads
            return cls(
                hidden=config.hidden_size,
                layers=config.num_hidden_layers,
                heads=heads,
                kv_heads=get(config, "num_key_value_heads", None) or heads,
                head_dim=get(config, "head_dim", None) or config.hidden_size // heads,
                inner=inner,
                vocab=config.vocab_size,
                gated=config.model_type not in ("gpt2", "gpt_neox", "opt", "phi", "starcoder2"),
                tied=bool(config.tie_word_embeddings),
            )
        except AttributeError as error:
            raise UserError(f"the model's config lacks a size: {error}") from error

    @property
    def layer_weights(self) -> int:
        """The weights of one layer: H A twice (query, output), H K twice, and H I two or three times."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return attention + (3 if self.gated else 2) * self.hidden * self.inner

    @property
    def linear_weights(self) -> int:
        """The weights of all layers."""
        return self.layers * self.layer_weights

    @property
    def weights(self) -> int:
        """All weights: layers, norms, embeddings."""
        embeddings = (1 if self.tied else 2) * self.vocab * self.hidden
        return self.linear_weights + (2 * self.layers + 1) * self.hidden + embeddings

    def forward_flops(self, tokens: float, pairs: float, scored: float) -> float:
        """FLOPs of a forward: `tokens` fed, `pairs` of a query and a key that it attends to, `scored` tokens projected.

        Two for each weight and token; 4 A for each pair and layer (score, sum of values); 2 H V for each scored token.
        """
        return (
            2.0 * self.linear_weights * tokens
            + 4.0 * self.layers * self.heads * self.head_dim * pairs
            + 2.0 * self.hidden * self.vocab * scored
        )

    def kept_elements(self, *, fused: bool) -> int:
        """Elements that one layer keeps of one token for its backward.

        Input and output of both norms 4 H, query and attention output 2 A, key and value 2 K, and the two inner tensors
        of the MLP (2 I where prefopt's fused forward runs, on CPU; else 4 I with a gate, 2 I without). Plain norms keep
        their input once more in float32 (counted as 4 H).
        """
        a, k = self.heads * self.head_dim, self.kv_heads * self.head_dim
        inner = 2 if fused or not self.gated else 4
        return (4 if fused else 8) * self.hidden + 2 * a + 2 * k + inner * self.inner


_LLAMA3 = Shape(hidden=4096, layers=32, heads=32, kv_heads=8, head_dim=128, inner=14_336, vocab=128_256)
# Sizes from the models' config.json.
SHAPES: dict[str, Shape] = {
    "smollm2-135m": Shape(
        hidden=576, layers=30, heads=9, kv_heads=3, head_dim=64, inner=1536, vocab=49_152, tied=True
    ),
    "llama3-8b": _LLAMA3,
    "llama3-70b": replace(_LLAMA3, hidden=8192, layers=80, heads=64, inner=28_672),
    "llama3-405b": replace(_LLAMA3, hidden=16_384, layers=126, heads=128, inner=53_248),
    "qwen2.5-7b": Shape(
        hidden=3584, layers=28, heads=28, kv_heads=4, head_dim=128, inner=18_944, vocab=152_064
    ),
    "mistral-7b": Shape(
        hidden=4096, layers=32, heads=32, kv_heads=8, head_dim=128, inner=14_336, vocab=32_000
    ),
}  # fmt: skip


def shape(name: str) -> Shape:
    """Look up a shape by its name, or read it from a `config.json` (the file, or its folder).

    Raises:
        UserError: an unknown name, or a file that is not a model's config.
    """
    if name in SHAPES:
        return SHAPES[name]
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"unknown model shape {name!r}{nearest(name, SHAPES)}; give one of {', '.join(SHAPES)}, or a "
                        "config.json")  # fmt: skip
    from transformers import AutoConfig

    try:
        given = json.loads(path.read_text())
        config = AutoConfig.for_model(**given) if isinstance(given, dict) and "model_type" in given else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a model's config.json: {error}") from error
    if config is None:
        raise UserError(f"{path} is not a model's config.json: it has no model_type")
    return Shape.of(config.get_text_config())
