"""Generation by every kind of layers: the greedy texts of a plain forward over the whole text, token for token."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from prefopt.engine import decoders
from prefopt.engine.gates import choose_layout
from prefopt.engine.generation import generate
from prefopt.errors import UserError
from tests.engine import families, tiny

KEYS = ["llama", "gpt2", "gemma3_text", "mistral", "falcon", "bloom", "mpt", "gptj", "llama4_text"]
STATES = ["mamba", "mamba2", "falcon_mamba", "jamba", "bamba", "recurrent_gemma", "lfm2", "qwen3_next", "falcon_h1",
          "minimax"]  # fmt: skip
RECOMPUTED = ["rwkv"]  # its state is right for one row only
# Several lengths, repeated prompts next to each other and apart, longer than the windows of 8, and one token alone.
PROMPTS = [
    [3, 4, 5],
    [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18],
    [3],
    [3, 4, 5],
    [20, 21, 22],
    [90, 80, 70, 60, 50],
    [90, 80, 70, 60, 51],
]
NEW = 8


def plain_greedy(model: Any) -> tuple[list[list[int]], list[int]]:
    """The text behind each prompt (one row, no padding, no cache), and tokens that end some of them early."""
    found = {}
    for prompt in dict.fromkeys(map(tuple, PROMPTS)):
        ids = list(prompt)
        for _ in range(NEW):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        found[prompt] = ids[len(prompt) :]
    texts = [found[tuple(prompt)] for prompt in PROMPTS]
    ends = [texts[1][2], texts[-1][5]]
    cut = [next((i + 1 for i, token in enumerate(text) if token in ends), NEW) for text in texts]
    return [text[:length] for text, length in zip(texts, cut, strict=True)], ends


def greedy(model: Any, ends: list[int], batch_size: int = 512) -> list[list[int]]:
    return generate(model, PROMPTS, max_new_tokens=NEW, eos_token_id=ends, temperature=0, batch_size=batch_size)


@pytest.mark.parametrize("family", [*KEYS, *STATES, *RECOMPUTED])
def test_texts_are_those_of_plain_forwards(family: str) -> None:
    model = families.model(family)
    expected, ends = plain_greedy(model)
    assert len({len(text) for text in expected}) > 1  # rows end at different steps
    assert greedy(model, ends) == expected
    assert greedy(model, ends, batch_size=2) == expected
    # Nothing falls back to the slow decoder unnoticed.
    named = {**dict.fromkeys(KEYS, "KeyValueDecoder"), **dict.fromkeys(STATES, "StateDecoder")}
    assert decoders.DECODERS[model].__name__ == named.get(family, "PlainDecoder")


@pytest.mark.parametrize("family", ["mamba2", "rwkv", "lfm2"])
def test_samples_do_not_depend_on_the_batch(family: str) -> None:
    model = families.model(family)

    def sample(batch_size: int) -> list[list[int]]:
        return generate(model, PROMPTS, max_new_tokens=NEW, eos_token_id=2, seed=1, batch_size=batch_size)

    assert sample(1) == sample(512)


def test_a_cache_that_lies_is_found_out(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A model that takes a cache and looks at its last token alone writes from the whole text, and says so."""
    model = families.model("llama")
    expected, ends = plain_greedy(model)
    own = type(model).forward

    def forgetful(self: Any, cache: Any = None, past_key_values: Any = None, **call: Any) -> Any:
        return own(self, **call)

    monkeypatch.setattr(type(model), "forward", forgetful)
    with caplog.at_level(logging.WARNING, "prefopt.engine.decoders"):
        assert greedy(model, ends) == expected
    assert "LlamaForCausalLM: no cache gives the numbers" in caplog.text


def test_a_window_that_only_the_cache_believes_in() -> None:
    """Llama has no window; one left in its config makes the cache, but not the attention, forget."""
    model = families.model("llama")
    expected, ends = plain_greedy(model)
    model.config.sliding_window = 4
    assert greedy(model, ends) == expected


def test_positions_that_were_not_learned() -> None:
    model = tiny.build(AutoConfig.for_model("gpt2", **{**tiny.GPT2, "n_positions": 64}))
    assert len(generate(model, [[3] * 60], max_new_tokens=5, eos_token_id=-1)[0]) == 5  # the last is never fed
    with pytest.raises(UserError, match=r"60 tokens and 20 new.*64 positions.*evaluation.max_new_tokens to 5 or less"):
        generate(model, [[3], [3] * 60], max_new_tokens=20, eos_token_id=2)
    with pytest.raises(UserError, match=r"64 positions.*lower data.max_length"):
        generate(model, [[3] * 65], max_new_tokens=1, eos_token_id=2)
    rotary = families.model("llama")
    rotary.config.max_position_embeddings = 8
    assert len(generate(rotary, [[3] * 12], max_new_tokens=4, eos_token_id=-1)[0]) == 4


def test_a_rotary_embedding_that_changes_on_the_way() -> None:
    """Dynamic scaling gives every length its own embedding: cached keys would have that of a shorter text."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0}
    model = tiny.model("llama", max_position_embeddings=8, rope_parameters=rope)
    expected, ends = plain_greedy(model)
    assert greedy(model, ends) == expected


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e-40])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite(value: float, temperature: float) -> None:
    for family in ("llama", "mamba2"):
        model = families.model(family)
        model.get_output_embeddings().weight.data[5] = value
        with pytest.raises(UserError, match="logits are not finite"):
            generate(model, [[3, 4]], max_new_tokens=3, eos_token_id=2, temperature=temperature)
        assert model not in decoders.DECODERS  # judged once its weights are mended


@pytest.mark.parametrize("temperature", [1e-30, 1e-40, 1e-320])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    model = families.model("llama")
    found = generate(model, PROMPTS, max_new_tokens=NEW, eos_token_id=2, temperature=temperature)
    assert found == greedy(model, [2])


def test_tokens_that_are_ruled_out() -> None:
    """Logits of -inf are of tokens that a model never writes."""
    model = families.model("llama")
    model.lm_head.register_forward_hook(
        lambda module, args, output: output.index_fill(-1, torch.arange(50), -torch.inf)
    )
    for temperature in (0.0, 1.0):
        texts = generate(model, PROMPTS, max_new_tokens=NEW, eos_token_id=2, temperature=temperature)
        assert min(map(min, texts)) >= 50


@pytest.mark.parametrize("token", [97, -1])
def test_tokens_beyond_the_vocabulary(token: int) -> None:
    with pytest.raises(UserError, match=f"token id {token} of a prompt is beyond the vocabulary of Llama"):
        generate(families.model("llama"), [[3], [3, token]], max_new_tokens=3, eos_token_id=2)


@pytest.mark.parametrize("family", ["mamba", "llama"])
def test_the_verdict_is_remembered(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.model(family)
    once = greedy(model, [2])
    monkeypatch.setattr(decoders, "_reproduces", lambda *args: pytest.fail("judged again"))
    assert greedy(model, [2]) == once


def test_what_trees_have_shown_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.model("llama")
    expected, ends = plain_greedy(model)
    assert choose_layout(model).layout == "tree"
    monkeypatch.setattr(decoders, "_reproduces", lambda *args: pytest.fail("tried"))
    assert greedy(model, ends) == expected


def test_positions_that_do_not_begin_at_zero() -> None:
    """RoBERTa counts positions from behind its padding id, and so takes none from outside."""
    model = tiny.model("roberta", is_decoder=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    expected, ends = plain_greedy(model)
    assert greedy(model, ends) == expected


def test_qwen_3_5() -> None:
    sizes = families.PADDED["qwen3_next"]
    model = tiny.model("qwen3_5_text", **{k: v for k, v in sizes.items() if "expert" not in k and "moe" not in k})
    expected, ends = plain_greedy(model)
    assert greedy(model, ends) == expected
    assert decoders.DECODERS[model].__name__ == "StateDecoder"
