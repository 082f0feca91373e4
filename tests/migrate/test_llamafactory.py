"""LLaMA-Factory's YAML becomes ours, composes, and keeps its meaning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.config.compose import compose
from prefopt.migrate.convert import convert
from tests.migrate.settings import composed, written

LLAMA_FACTORY = {
    "stage": "dpo", "model_name_or_path": "org/model", "finetuning_type": "lora", "lora_rank": 4, "lora_target": "all",
    "pref_beta": 0.1, "pref_loss": "sigmoid", "dataset": "mine", "template": "llama3", "cutoff_len": 512,
    "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "learning_rate": "5.0e-6", "val_size": 0.1,
    "num_train_epochs": 2.0, "warmup_ratio": 0.1, "bf16": False, "plot_loss": True, "neftune_noise_alpha": 5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "name", "fields"),
    [
        ({}, "dpo", {"beta": 0.1}),
        ({"pref_ftx": 0.5}, "irpo", {"alpha": 0.5}),
        ({"dpo_label_smoothing": 0.2}, "cdpo", {"label_smoothing": 0.2}),
        ({"pref_loss": "ipo"}, "ipo", {"tau": 0.1}),
        ({"pref_loss": "orpo"}, "orpo", {"lam": 0.1}),
        ({"pref_loss": "simpo", "simpo_gamma": 0.5}, "simpo", {"gamma_beta_ratio": 5.0}),
        ({"stage": "kto", "kto_chosen_weight": 1.5}, "kto", {"desirable_weight": 1.5}),
        ({"stage": "sft"}, "sft_token_mean", {}),
    ],
)
def test_llama_factory(tmp_path: Path, change: Any, name: str, fields: dict[str, float]) -> None:
    config = composed(written(tmp_path, LLAMA_FACTORY | change, "theirs.yaml"), tmp_path)
    assert config.loss_name == name
    assert {k: getattr(config.loss, k) for k in fields} == pytest.approx(fields)
    assert (config.peft.method, config.peft.r, config.peft.alpha) == ("lora", 4, 8)
    assert (config.batch.records, config.data.max_length, config.data.eval_fraction) == (8, 512, 0.1)
    assert {k: config.trainer[k] for k in ("learning_rate", "warmup_steps")} == {
        "learning_rate": 5e-6,
        "warmup_steps": 0.1,
    }


@pytest.mark.parametrize(("change", "train_on"), [({}, "all_turns"), ({"mask_history": True}, None)])
def test_sft_trains_the_turns_that_it_trains_there(tmp_path: Path, change: Any, train_on: str | None) -> None:
    found = convert(written(tmp_path, LLAMA_FACTORY | {"stage": "sft"} | change, "theirs.yaml"))
    assert found.settings.get("data.train_on") == train_on


def test_llama_factorys_data_are_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "mine.json"}}))
    found = convert(written(tmp_path, LLAMA_FACTORY, "theirs.yaml"))
    assert found.settings["data.path"] == str(tmp_path / "data" / "mine.json")
    assert set(found.no_equal) == {"neftune_noise_alpha"}


def test_images_are_a_column(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    entry = {"file_name": "mine.json", "columns": {"images": "photos", "videos": "films"}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    found = convert(written(tmp_path, LLAMA_FACTORY, "theirs.yaml"))
    assert found.settings["data.fields"] == {"images": "photos"}
    assert "videos of mine" in found.no_equal
    assert any("vision tower" in text for text in found.differs)
    told = convert(written(tmp_path, LLAMA_FACTORY | {"freeze_vision_tower": False}, "told.yaml"))
    assert not any("vision tower" in text for text in told.differs)


def test_what_a_limit_of_each_data_set_means(tmp_path: Path) -> None:
    """`max_samples` is of each data set there, and of all together here; what else is left out is listed."""
    (tmp_path / "data").mkdir()
    entries = {
        "a": {"file_name": "a.json", "num_samples": 5},
        "b": {"hf_hub_url": "org/b", "subset": "x", "split": "s"},
    }
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(entries))
    one = convert(written(tmp_path, LLAMA_FACTORY | {"dataset": "b", "max_samples": 1000}, "one.yaml"))
    assert {k: one.settings[f"data.{k}"] for k in ("path", "subset", "split")} == {
        "path": "org/b", "subset": "x", "split": "s",
    }  # fmt: skip
    assert one.settings["data.max_records"] == 1000
    assert not any("max_samples" in text for text in one.differs)
    given = LLAMA_FACTORY | {"dataset": "a, b", "max_samples": 1000, "eval_dataset": "a,b", "val_size": 0}
    both = convert(written(tmp_path, given, "both.yaml"))
    assert both.settings["data.mixture"][1] == {"path": "org/b", "subset": "x", "split": "s"}
    assert "data.max_records" not in both.settings
    assert sum("max_samples=1000" in text for text in both.differs) == 2
    assert {"num_samples of a", "eval_dataset"} <= set(both.no_equal)
    mixture = compose([o for o in both.overrides if "eval" not in o]).data.mixture
    assert [source.path for source in mixture] == [str(tmp_path / "data" / "a.json"), "org/b"]
