"""The real files through the real trainer, with a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt.data import DataConfig, prepare
from prefopt.data.jinja_source import NAMED
from prefopt.losses import registry
from prefopt.train import BatchConfig, train
from tests.data.test_shared_files import FILES
from tests.data.tiny import tokenizer

LOSSES = {"pairs": "dpo", "unpaired": "kto", "lists": "plackett_luce", "demonstrations": "sft"}
STEPS = 10


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_ten_steps(shared_data: Path, tmp_path: Path, name: str) -> None:
    loss = registry.load(LOSSES[FILES[name][1].value])
    made = tokenizer(NAMED.joinpath("chatml.jinja").read_text(), eos="<|im_end|>")
    config = DataConfig(path=str(shared_data / name), max_length=4096, max_records=60)
    ready = prepare(config, made, loss.needs.data)
    short = ready.train.select((ready.train.prompt_lengths().argsort(kind="stable"))[:16])
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(made), num_key_value_heads=2, **sizes))
    before = model.lm_head.weight.detach().clone()
    result = train(
        model, loss, short, output_dir=tmp_path / "run", batch=BatchConfig(records=4, max_tokens=8192),
        max_steps=STEPS, learning_rate=1e-3, logging_steps=1,
    )  # fmt: skip
    losses = [entry["loss"] for entry in result.trainer.state.log_history if "loss" in entry]
    assert len(losses) == STEPS
    assert all(torch.isfinite(torch.tensor(losses)))
    assert not torch.equal(before, model.lm_head.weight)
