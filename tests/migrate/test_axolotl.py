"""Axolotl's YAML becomes ours, composes, and keeps its meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import UserError
from prefopt.migrate.convert import convert
from tests.migrate.settings import composed, written

# As in examples/llama-3/instruct-dpo-lora-8b.yml.
AXOLOTL = {
    "base_model": "org/model", "model_type": "LlamaForCausalLM", "chat_template": "llama3", "rl": "dpo",
    "datasets": [{"path": "org/data", "type": "chat_template.default", "field_messages": "conversation",
                  "field_chosen": "good", "message_property_mappings": {"role": "role", "content": "content"},
                  "roles": {"user": ["user"], "assistant": ["assistant"], "system": ["system"]}}],
    "val_set_size": 0.05, "output_dir": "out", "sequence_len": 4096, "sample_packing": False,
    "adapter": "lora", "lora_r": 32, "lora_alpha": 16, "lora_dropout": 0.05, "lora_target_linear": True,
    "gradient_accumulation_steps": 4, "micro_batch_size": 2, "num_epochs": 4, "optimizer": "adamw_torch",
    "lr_scheduler": "cosine", "learning_rate": "0.0002", "bf16": False, "tf32": False, "gradient_checkpointing": True,
    "logging_steps": 1, "attn_implementation": "flash_attention_2", "warmup_ratio": 0.1, "evals_per_epoch": 4,
    "saves_per_epoch": 1, "weight_decay": 0.0, "special_tokens": {"pad_token": "<pad>"}, "wandb_project": "mine",
}  # fmt: skip


def test_a_whole_file(tmp_path: Path) -> None:
    config = composed(source := written(tmp_path, AXOLOTL, "theirs.yaml"), tmp_path, processes=2)
    assert (config.loss_name, config.loss.beta) == ("dpo", 0.1)  # type: ignore[attr-defined]
    assert (config.model.path, config.data.path, str(config.output_dir)) == ("org/model", "org/data", "out")
    assert config.data.fields == {"chosen": "good"}  # `conversation` is recognised
    assert (config.data.eval_fraction, config.data.max_length) == (0.05, 4096)
    assert (config.peft.method, config.peft.r, config.peft.alpha) == ("lora", 32, 16)
    assert config.batch.records == 2 * 4 * 2
    assert {name: config.trainer[name] for name in ("learning_rate", "num_train_epochs", "warmup_steps", "eval_steps",
                                                    "save_steps", "optim", "save_total_limit")} == {
        "learning_rate": 2e-4, "num_train_epochs": 4.0, "warmup_steps": 0.1, "eval_steps": 0.0625, "save_steps": 0.25,
        "optim": "adamw_torch", "save_total_limit": 4,
    }  # fmt: skip
    assert (config.tracking.report_to, config.tracking.project) == ("wandb", "mine")
    found = convert(source)
    assert set(found.no_equal) == {"lora_dropout", "attn_implementation", "special_tokens"}
    assert "model_type" in found.no_effect


@pytest.mark.parametrize(
    ("change", "name", "fields"),
    [
        ({"rl_beta": 0.3}, "dpo", {"beta": 0.3}),
        ({"rl": "ipo", "rl_beta": 0.3}, "ipo", {"tau": 0.3}),
        ({"rl": "kto", "rl_beta": 0.5, "kto_desirable_weight": 0.2}, "kto", {"beta": 0.5, "desirable_weight": 0.2}),
        ({"rl": "orpo", "orpo_alpha": 0.2}, "orpo", {"lam": 0.2}),
        ({"rl": "simpo", "rl_beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0}, "simpo", {"gamma_beta_ratio": 0.5}),
        ({"rl": "simpo", "rl_beta": 2.0, "simpo_gamma": 1.0}, "cpo_simpo", {"alpha": 1.0}),
        ({"dpo_loss_type": ["hinge"]}, "hinge", {"beta": 0.1}),
        ({"dpo_use_weighting": True}, "wpo", {}),
        ({"rl": "grpo", "trl": {"loss_type": "grpo", "beta": 0.04, "num_generations": 4}}, "grpo", {"beta": 0.04}),
        ({"rl": None, "reward_model": True, "center_rewards_coefficient": 0.01}, "bradley_terry", {"centre": 0.01}),
        ({"rl": None}, "sft_token_mean", {}),
    ],
)
def test_losses(tmp_path: Path, change: dict[str, Any], name: str, fields: dict[str, float]) -> None:
    config = composed(written(tmp_path, AXOLOTL | change, "theirs.yaml"), tmp_path)
    assert config.loss_name == name
    assert {k: getattr(config.loss, k) for k in fields} == pytest.approx(fields)


def test_rpo_alpha_is_a_second_loss(tmp_path: Path) -> None:
    found = convert(written(tmp_path, AXOLOTL | {"rpo_alpha": 0.5}, "theirs.yaml"))
    assert (found.source, found.settings["model.path"]) == ("Axolotl", "org/model")
    assert {name: w for name, w in found.settings["loss.terms"].items() if w} == {"dpo": 1.0, "sft_token_mean": 0.5}


def test_types_of_data(tmp_path: Path) -> None:
    """Columns by their own names, texts as they are, and several sets; what a source loses is listed by its path."""
    own = {"path": "a.jsonl", "ds_type": "json", "split": "train", "shards": 4, "trust_remote_code": True,
           "type": {"field_prompt": "question", "field_chosen": "good", "field_rejected": "bad",
                    "prompt_format": "[INST] {prompt}"}}  # fmt: skip
    found = convert(written(tmp_path, AXOLOTL | {"datasets": [own]}, "one.yaml"))
    assert found.settings["data.path"] == "a.jsonl"
    assert "data.split" not in found.settings
    assert found.settings["data.fields"] == {"chosen": "good", "rejected": "bad", "prompt": "question"}
    assert found.settings["data.template"] == "plain"
    assert {"prompt_format of a.jsonl", "shards of a.jsonl", "trust_remote_code of a.jsonl"} <= set(found.no_equal)
    two = [{"path": "org/b", "type": "chatml.intel", "split": "part"}, {"path": "org/c", "type": "llama3.ultra"}]
    both = convert(written(tmp_path, AXOLOTL | {"datasets": two, "test_datasets": [{"path": "t.jsonl"}]}, "two.yaml"))
    assert both.settings["data.mixture"] == [{"path": "org/b", "split": "part"}, {"path": "org/c"}]
    assert both.settings["data.template"] == "chatml"
    assert both.settings["data.eval_path"] == "t.jsonl"


def test_what_it_does_not_hold_out_is_not_held_out(tmp_path: Path) -> None:
    found = convert(written(tmp_path, AXOLOTL | {"val_set_size": 0.0}, "theirs.yaml"))
    assert found.settings["data.eval_records"] == 0
    assert "eval_steps" in found.no_effect


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rl": "ebft"}, "rl: ebft is not offered"),
        ({"adapter": "ia3"}, "choose from: lora, qlora"),
        ({"datasets": ["a"]}, "datasets must be a list of mappings"),
    ],
)
def test_refusals(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        convert(written(tmp_path, AXOLOTL | change, "theirs.yaml"))
