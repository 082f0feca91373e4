"""ms-swift's arguments become ours, compose, and keep their meaning."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import UserError
from prefopt.migrate.convert import convert
from tests.migrate.settings import composed, written

# As in examples/train/rlhf/dpo/full.sh.
FULL = shlex.split(
    "swift rlhf --rlhf_type dpo --model org/model --tuner_type full --dataset org/data --load_from_cache_file true "
    "--split_dataset_ratio 0.01 --torch_dtype bfloat16 --num_train_epochs 1 --per_device_train_batch_size 4 "
    "--learning_rate 1e-5 --gradient_accumulation_steps 1 --eval_steps 100 --save_steps 100 --save_total_limit 2 "
    "--logging_steps 5 --max_length 8192 --output_dir output --warmup_ratio 0.05 --save_only_model true "
    "--dataloader_num_workers 4 --dataset_num_proc 4 --deepspeed zero3 --attn_impl flash_attn --padding_free true"
)


def test_a_whole_command(tmp_path: Path) -> None:
    config = composed(FULL, tmp_path, processes=4)
    assert (config.loss_name, config.loss.beta, config.peft.method) == ("dpo", 0.1, "none")  # type: ignore[attr-defined]
    assert (config.model.path, config.model.dtype, config.data.path) == ("org/model", "bfloat16", "org/data")
    assert (config.data.eval_fraction, config.data.max_length, config.seed) == (0.01, 8192, 42)
    assert config.batch.records == 4 * 4
    trainer = {name: config.trainer[name] for name in ("learning_rate", "weight_decay", "adam_beta2", "warmup_steps",
                                                       "eval_strategy", "eval_steps", "bf16")}  # fmt: skip
    assert trainer == {"learning_rate": 1e-5, "weight_decay": 0.1, "adam_beta2": 0.95, "warmup_steps": 0.05,
                       "eval_strategy": "steps", "eval_steps": 100, "bf16": True}  # fmt: skip
    assert config.tracking.report_to == "tensorboard"
    found = convert(FULL)
    assert set(found.no_equal) == {"deepspeed", "attn_impl"}
    assert {"padding_free", "load_from_cache_file"} <= set(found.no_effect)
    assert any("ModelScope" in text for text in found.differs)


@pytest.mark.parametrize(
    ("change", "name", "fields"),
    [
        ({"beta": 0.3}, "dpo", {"beta": 0.3}),
        ({"loss_type": "hinge"}, "hinge", {"beta": 0.1}),
        ({"rlhf_type": "kto", "desirable_weight": 1.5}, "kto", {"desirable_weight": 1.5}),
        ({"rlhf_type": "orpo"}, "orpo", {"lam": 0.1}),
        ({"rlhf_type": "cpo", "cpo_alpha": 0.5}, "cpo", {"alpha": 0.5}),
        ({"rlhf_type": "simpo"}, "cpo_simpo", {"beta": 2.0, "gamma_beta_ratio": 0.5, "alpha": 1.0}),
        ({"rlhf_type": "rm", "center_rewards_coefficient": 0.01}, "bradley_terry", {"centre": 0.01}),
        ({"rlhf_type": "grpo"}, "grpo", {"beta": 0.04}),
    ],
)
def test_losses(tmp_path: Path, change: dict[str, Any], name: str, fields: dict[str, float]) -> None:
    given = {"rlhf_type": "dpo", "model": "m", "dataset": ["d.jsonl"], "split_dataset_ratio": 0.1, "max_length": 512}
    config = composed(written(tmp_path, given | change, "args.json"), tmp_path)
    assert config.loss_name == name
    assert {k: getattr(config.loss, k) for k in fields} == pytest.approx(fields)


def test_rpo_alpha_is_a_second_loss() -> None:
    found = convert([*FULL, "--rpo_alpha", "0.1"])
    terms = found.settings["loss.terms"]
    assert {name: weight for name, weight in terms.items() if weight} == {"dpo": 1.0, "sft_token_mean": 0.1}


def test_data(tmp_path: Path) -> None:
    """`path#count`, `HF::id:subset`, and columns by their own names; the defaults of LoRA are theirs."""
    words = ["swift", "rlhf", "--rlhf_type", "dpo", "--model", "m", "--dataset", "HF::org/a:part#50", "--columns",
             '{"good": "response", "bad": "rejected_response", "photo": "images", "x": "objects"}',
             "--use_hf", "true"]  # fmt: skip
    found = convert(words)
    assert {name: found.settings[f"data.{name}"] for name in ("path", "subset", "max_records", "fields")} == {
        "path": "org/a", "subset": "part", "max_records": 50,
        "fields": {"chosen": "good", "rejected": "bad", "images": "photo"},
    }  # fmt: skip
    assert "columns: objects" in found.no_equal
    assert found.settings["data.eval_records"] == 0  # nothing is held out there
    assert (found.settings["peft.r"], found.settings["peft.alpha"]) == (8, 32)
    assert found.settings["trainer.learning_rate"] == 1e-4
    assert found.settings["batch.records"] == 16


def test_sft(tmp_path: Path) -> None:
    config = composed(["swift", "sft", "--model", "m", "--dataset", "d.jsonl", "--max_length", "64"], tmp_path)
    assert config.loss_name == "sft_token_mean"


def test_a_file_says_by_class_what_it_trains(tmp_path: Path) -> None:
    path = written(tmp_path, {"model": "m", "dataset": ["d.jsonl"], "tuner_type": "lora", "rlhf_type": None})
    assert convert(path, kind="swift sft").groups["loss"] == "sft_token_mean"
    assert convert(path, kind="swift rlhf").groups["loss"] == "dpo"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--rlhf_type", "gkd"], "rlhf_type gkd is not offered here"),
        (["--tuner_type", "adalora"], "choose from: lora, full"),
        (["--columns", "{"], "is not a JSON object"),
    ],
)
def test_refusals(words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        convert(["swift", "rlhf", "--model", "m", "--dataset", "d.jsonl", *words])
