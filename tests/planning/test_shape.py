"""Weights, FLOPs and activations of a shape are those of the model."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt.errors import UserError
from prefopt.planning.shape import SHAPES, Shape
from prefopt.planning.sharded import AverageRecord


def test_weights_of_a_shape_are_those_of_the_model() -> None:
    config = LlamaConfig(vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
                         num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)  # fmt: skip
    model = LlamaForCausalLM(config)
    assert Shape.of(config).weights == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "billions"),
    [("llama3-8b", 8.03), ("llama3-70b", 70.55), ("llama3-405b", 405.85), ("smollm2-135m", 0.1345)],
)
def test_shapes_have_the_published_number_of_weights(name: str, billions: float) -> None:
    assert SHAPES[name].weights / 1e9 == pytest.approx(billions, rel=1e-3)


def test_flops_by_hand() -> None:
    """Width 2, one layer, one head of 2, inner 3, 5 words; 7 tokens, 22.5 pairs, 5 scored.

    Weights of the layer: 4 * 4 + 3 * 2 * 3 = 34. 2 * 34 * 7 = 476; 4 * 2 * 22.5 = 180; 2 * 2 * 5 * 5 = 100.
    """
    tiny = Shape(hidden=2, layers=1, heads=1, kv_heads=1, head_dim=2, inner=3, vocab=5)
    record = AverageRecord(prompt=4, completions=(3, 2))
    assert (record.fed, record.pairs, record.scored) == (7, 22.5, 5)
    assert tiny.forward_flops(record.fed, record.pairs, record.scored) == 476 + 180 + 100


def test_a_shape_with_experts_is_refused() -> None:

    with pytest.raises(UserError, match="experts"):
        Shape.of(SimpleNamespace(num_experts=8))
    assert replace(SHAPES["llama3-8b"], tied=True).weights < SHAPES["llama3-8b"].weights
