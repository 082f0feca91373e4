"""Memory by part."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt.models.adapters import attach
from prefopt.models.peft_config import PeftConfig
from prefopt.planning.memory import count_weights, optimizer_bytes
from prefopt.planning.shape import Shape


def test_optimizer_states() -> None:
    assert optimizer_bytes("adamw_torch_fused", 100) == 200
    assert optimizer_bytes("adamw_8bit", 100) == 50
    assert optimizer_bytes("sgd", 100) == 0


def test_tied_weights_count_once() -> None:
    config = LlamaConfig(vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                         num_attention_heads=4, tie_word_embeddings=True)  # fmt: skip
    model = LlamaForCausalLM(config)
    held, trainable, count = count_weights(model)
    assert count == Shape.of(config).weights
    assert trainable == 4 * count
    assert held >= trainable  # and the buffers


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks for it
def test_with_an_adapter_only_its_weights_are_trained() -> None:
    pytest.importorskip("peft", reason="the peft extra is not installed")

    config = LlamaConfig(vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                         num_attention_heads=4)  # fmt: skip
    model = attach(LlamaForCausalLM(config), PeftConfig(method="lora", r=2), seed=0)
    held, trainable, _ = count_weights(model)
    # r (in + out) of seven matrices: query, key, value, output 32 + 32; gate, up, down 32 + 48
    assert trainable == 4 * 2 * (4 * 64 + 3 * 80)
    assert held > 4 * Shape.of(config).weights
