"""The reward model that a value model starts as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from prefopt.errors import UserError
from prefopt.models.model_config import ModelConfig
from prefopt.models.peft_config import PeftConfig
from prefopt.models.reward_model import load_value_model
from tests.data.tiny import tokenizer

TOKENIZER = tokenizer()


def saved(kind: type[Any], folder: Path) -> ModelConfig:
    """The configuration of a run whose value model starts as what is saved in `folder`."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "num_labels": 1,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    kind(
        LlamaConfig(vocab_size=len(TOKENIZER), eos_token_id=TOKENIZER.eos_token_id, bos_token_id=None, **shape)
    ).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return ModelConfig(path="policy", revision="of the policy", value_model=str(folder))


@pytest.mark.parametrize("method", ["none", "lora"])
def test_a_value_model_has_the_weights_of_the_reward_model(method: str, tmp_path: Path) -> None:
    config = saved(LlamaForSequenceClassification, tmp_path)
    expected = LlamaForSequenceClassification.from_pretrained(tmp_path)
    found = load_value_model(config, PeftConfig(method=method), tokenizer=TOKENIZER, seed=0)
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(found.eval()(ids).logits, expected(ids).logits)
    trained = {name for name, weight in found.named_parameters() if weight.requires_grad}
    assert all("lora_" in name or "score" in name for name in trained) == (method == "lora")
    assert any("score" in name for name in trained)


def test_without_one_there_is_none(tmp_path: Path) -> None:
    config = ModelConfig(path=str(tmp_path))
    assert load_value_model(config, PeftConfig(), tokenizer=TOKENIZER, seed=0) is None


def test_a_language_model_and_another_tokenizer_are_refused(tmp_path: Path) -> None:
    config = saved(LlamaForCausalLM, tmp_path / "language_model")
    with pytest.raises(UserError, match="is no reward model: give final/ of a run with loss=bradley_terry"):
        load_value_model(config, PeftConfig(), tokenizer=TOKENIZER, seed=0)
    config = saved(LlamaForSequenceClassification, tmp_path / "reward_model")
    other = tokenizer()
    other.add_tokens(["another"])
    with pytest.raises(UserError, match="has another tokenizer or image processor than the policy"):
        load_value_model(config, PeftConfig(), tokenizer=other, seed=0)
