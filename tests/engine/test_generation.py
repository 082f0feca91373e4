"""Generation: equal to transformers' greedy search, right frequencies, independent of how rows are batched."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from prefopt.engine.generation import generate
from prefopt.errors import UserError

VOCAB, EOS = 40, 7
_SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_SIZES, head_dim=8),
    "qwen3": Qwen3Config(**_SIZES, head_dim=8),
    "gemma3": Gemma3TextConfig(
        **_SIZES, head_dim=8, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
    ),
    "gpt2": GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64),
}
PROMPTS = [[1, 9, 9, 3], [5], [2, 8, 30, 31, 12, 6], [1, 9, 9, 3], [11, 4], [38, 37, 36, 35, 34], [5, 6, 8]]


def tiny_model(name: str, spread: float = 1.0) -> PreTrainedModel:
    """Random weights; `spread` widens them so that greedy texts are not all alike."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(CONFIGS[name])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(spread)
    return model.eval()


def greedy_by_transformers(model: PreTrainedModel, prompt: list[int], max_new_tokens: int) -> list[int]:
    output = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
        max_new_tokens=max_new_tokens, eos_token_id=EOS, pad_token_id=0, bos_token_id=1,
    )  # fmt: skip
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_greedy_equals_transformers(name: str, batch_size: int) -> None:
    model = tiny_model(name, spread=12.0)
    ours = generate(model, PROMPTS, max_new_tokens=12, eos_token_id=EOS, temperature=0, batch_size=batch_size)
    assert ours == [greedy_by_transformers(model, prompt, 12) for prompt in PROMPTS]


@pytest.mark.parametrize("name", CONFIGS)
def test_finished_rows_leave_without_a_trace(name: str) -> None:
    """With many end tokens rows end at different steps; each must be a prefix of the text without any end token."""
    model = tiny_model(name, spread=12.0)
    prompts = [[a, b] for a in range(1, 7) for b in range(8, 14)]
    whole = generate(model, prompts, max_new_tokens=15, eos_token_id=VOCAB, temperature=0)
    ends = list(range(0, VOCAB, 4))
    cut = generate(model, prompts, max_new_tokens=15, eos_token_id=ends, temperature=0)
    expected = []
    for text in whole:
        stop = next((i for i, token in enumerate(text) if token in ends), len(text) - 1)
        expected.append(text[: stop + 1])
    assert cut == expected
    assert len({len(text) for text in cut}) >= 3  # the test would show nothing if all ended together


def test_sampling_frequencies() -> None:
    """Counts of first tokens lie within 5 standard deviations of n * p, at two temperatures."""
    model, n, prompt = tiny_model("llama", spread=6.0), 20_000, [4, 9, 2]
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1].double()
    for temperature in (1.0, 0.5):
        p = torch.softmax(logits / temperature, -1).tolist()
        texts = generate(
            model, [prompt] * n, max_new_tokens=1, eos_token_id=EOS, temperature=temperature, seed=5, batch_size=4096
        )
        counts = Counter(text[0] for text in texts)
        for token in range(VOCAB):
            slack = 5 * math.sqrt(n * p[token] * (1 - p[token])) + 1
            assert abs(counts[token] - n * p[token]) <= slack


def test_second_token_follows_the_first() -> None:
    """Conditional frequencies: of the texts that begin with token a, the next is drawn from p(. | prompt, a)."""
    model, n, prompt = tiny_model("gpt2", spread=6.0), 20_000, [4, 9, 2]
    texts = generate(model, [prompt] * n, max_new_tokens=2, eos_token_id=EOS, seed=11, batch_size=4096)
    first = Counter(text[0] for text in texts if text[0] != EOS).most_common(1)[0][0]
    following = Counter(text[1] for text in texts if text[0] == first)
    with torch.no_grad():
        p = torch.softmax(model(torch.tensor([[*prompt, first]])).logits[0, -1].double(), -1).tolist()
    total = following.total()
    for token in range(VOCAB):
        assert abs(following[token] - total * p[token]) <= 5 * math.sqrt(total * p[token] * (1 - p[token])) + 1


def test_a_prompts_sample_depends_on_seed_and_position_alone() -> None:
    model = tiny_model("llama", spread=6.0)

    def sample(prompts: list[list[int]], seed: int, batch_size: int) -> list[list[int]]:
        return generate(model, prompts, max_new_tokens=10, eos_token_id=EOS, seed=seed, batch_size=batch_size)

    once = sample(PROMPTS, 0, 64)
    assert sample(PROMPTS, 0, 2) == once
    assert sample([*PROMPTS, [1, 2], [3]], 0, 64)[: len(PROMPTS)] == once
    assert sample(PROMPTS, 1, 64) != once
    assert once[0] != once[3]  # the same prompt twice: two samples


def test_mode_and_gradients_are_left_alone() -> None:
    model = tiny_model("llama")
    model.train()
    model.lm_head.eval()  # a part that was frozen in eval mode stays so
    text = generate(model, [[1, 2]], max_new_tokens=3, eos_token_id=EOS)
    assert 1 <= len(text[0]) <= 3
    assert model.training
    assert model.model.layers[0].training
    assert not model.lm_head.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": [[1], []]}, "at least the beginning-of-text token"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"temperature": float("nan")}, "temperature must be 0"),
    ],
)
def test_refusals(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"prompts": [[1]], "max_new_tokens": 2, "eos_token_id": EOS, **change}
    with pytest.raises(UserError, match=message):
        generate(tiny_model("llama"), arguments.pop("prompts"), **arguments)


def test_no_prompts_no_texts() -> None:
    assert generate(tiny_model("llama"), [], max_new_tokens=2, eos_token_id=EOS) == []
