"""Lists, labels, unpaired completions and pairs of real data, twenty steps each with a tiny model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt.data import DataConfig, prepare
from prefopt.losses import registry
from prefopt.plugin import Data
from prefopt.train import BatchConfig, train
from tests.data.tiny import tokenizer

STEPS = 20
GSM8K = "gsm8k/example_model_solutions.jsonl.gz"
KTO_DEMO = "llama-factory/kto_en_demo.json"
HH_RLHF = "hh-rlhf/harmless-base-test.jsonl.gz"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "loss_name", "kind"),
    [
        (GSM8K, "plackett_luce", Data.LISTS),
        (GSM8K, "info_nca", Data.LISTS),
        (GSM8K, "rrhf", Data.LISTS),
        (GSM8K, "kto", Data.UNPAIRED),
        (KTO_DEMO, "kto", Data.UNPAIRED),
        (KTO_DEMO, "bco", Data.UNPAIRED),
        (KTO_DEMO, "csft", Data.UNPAIRED),
        (HH_RLHF, "dpo", Data.PAIRS),
        (HH_RLHF, "simpo", Data.PAIRS),
    ],
)
def test_twenty_steps(shared_data: Path, tmp_path: Path, file: str, loss_name: str, kind: Data) -> None:
    loss = registry.load(loss_name)
    assert loss.needs.data is kind
    made = tokenizer()
    # GSM8K says right or wrong: above 0.5 is right
    labels = 0.5 if file == GSM8K and kind is Data.UNPAIRED else None
    config = DataConfig(
        path=str(shared_data / file), template="plain", max_length=4096, max_records=80, desirable_above=labels,
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    ready = prepare(config, made, loss.needs.data, control_text=getattr(loss, "control_text", None))
    short = ready.train.select(ready.train.prompt_lengths().argsort(kind="stable")[:32])
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(made), num_key_value_heads=2, **sizes))
    before = model.lm_head.weight.detach().clone()
    result = train(
        model, loss, short, output_dir=tmp_path / "run", store=tmp_path / "reference", logging_steps=1,
        batch=BatchConfig(records=4, max_tokens=8192), max_steps=STEPS, learning_rate=1e-3, use_cpu=True,
    )  # fmt: skip
    losses = [entry["loss"] for entry in result.trainer.state.log_history if "learning_rate" in entry]
    assert len(losses) == STEPS
    assert all(map(math.isfinite, losses))
    assert not torch.equal(before, model.lm_head.weight)
