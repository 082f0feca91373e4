"""No option of another trainer is dropped without a word."""

from __future__ import annotations

import dataclasses
import importlib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefopt.migrate.convert import convert
from prefopt.migrate.no_equivalent import has_no_effect, would_do
from prefopt.migrate.trainer_options import STOCK
from prefopt.migrate.trl import CLASSES
from tests.migrate.settings import OPTIONS

GIVEN: dict[str, dict[str, Any]] = {
    "axolotl": {"base_model": "m", "rl": "dpo", "datasets": [{"path": "d.jsonl"}], "micro_batch_size": 2,
                "adapter": "lora", "lora_r": 4, "lora_alpha": 8, "learning_rate": 1e-5, "val_set_size": 0.1},
    "swift": {"rlhf_type": "dpo", "model": "m", "dataset": ["d.jsonl"], "split_dataset_ratio": 0.01},
    "llamafactory": {"stage": "dpo", "model_name_or_path": "m", "dataset": "d", "finetuning_type": "lora"},
}  # fmt: skip
# Values that mean what is there already, or that are transformers' defaults.
SAME = {"axolotl": {"batch_size", "bf16", "excess_length_strategy", "dataloader_pin_memory", "remove_unused_columns"},
        "swift": {"per_device_train_batch_size", "quant_method", "truncation_strategy", "use_chat_template"},
        "llamafactory": set()}  # fmt: skip
# Kinds of training that are refused, and values that are no such objects.
REFUSED = {"axolotl": {"dpo_loss_type", "pretraining_dataset", "process_reward_model", "test_datasets", "trl"},
           "swift": {"columns", "gradient_checkpointing_kwargs", "loss_type", "lr_scheduler_kwargs", "tuner_type"},
           "llamafactory": set()}  # fmt: skip


def plain(path: Path, settings: dict[str, Any], kind: str | None = None) -> dict[str, Any]:
    path.write_text(yaml.safe_dump(settings))
    return convert(str(path), kind=kind).plain()


@pytest.mark.parametrize("program", OPTIONS)
def test_every_option_leaves_a_trace(program: str, tmp_path: Path) -> None:
    """In the overrides, or by name among what has no equivalent, no effect or another meaning; with a reason."""
    given, path = GIVEN[program], tmp_path / "theirs.yaml"
    before = plain(path, given)
    for name, value in OPTIONS[program].items():
        off = value == 0 and value is not False  # turned off: nothing is asked for
        if name in given or off or name in SAME[program] | REFUSED[program]:
            continue
        after = plain(path, given | {name: value})
        assert after != before, name
        unknown = [name for name, why in after["no_equal"].items() if "look up what it does" in why]
        assert unknown == [], "prefopt/migrate/no_equivalent.yaml has no text for them"


@pytest.mark.parametrize("kind", CLASSES)
def test_every_switch_of_trl_leaves_a_trace(kind: str, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="the peers extra is not installed")
    verb = {"ORPOConfig": "orpo", "CPOConfig": "cpo", "OnlineDPOConfig": "online_dpo"}.get(kind)
    cls = getattr(trl if verb is None else importlib.import_module(f"trl.experimental.{verb}"), kind)
    given, path = {"use_peft": True}, tmp_path / "theirs.yaml"
    before = plain(path, given, kind)
    for field in dataclasses.fields(cls):
        if isinstance(field.default, bool) and STOCK.get(field.name) is not (not field.default):
            assert plain(path, given | {field.name: not field.default}, kind) != before, field.name


def test_what_is_on_there_asks_for_something_where_it_is_off(tmp_path: Path) -> None:
    trl = plain(tmp_path / "trl.yaml", {"disable_dropout": False}, "DPOConfig")
    assert trl["no_equal"]["disable_dropout"].startswith("trains with dropout")
    off = {"ignore_pad_token_for_loss": False, "freeze_vision_tower": False}
    factory = plain(tmp_path / "factory.yaml", GIVEN["llamafactory"] | off)
    assert "ignore_pad_token_for_loss" in factory["no_equal"]
    assert "freeze_vision_tower" in factory["no_effect"]  # it is trained here
    on = plain(tmp_path / "swift.yaml", GIVEN["swift"] | {"dataset_shuffle": True, "freeze_vit": True})
    assert "dataset_shuffle" not in on["no_equal"]
    assert "freeze_vit" in on["no_equal"]


def test_every_row_of_the_table_is_reached() -> None:
    """A row below a pattern that has its name too would never be read."""
    table = yaml.safe_load((files("prefopt.migrate") / "no_equivalent.yaml").read_text())
    for name, text in table["would"].items():
        assert not has_no_effect(name, True), name
        assert would_do(name, True) == text, name


def test_an_option_that_nobody_knows_is_named(tmp_path: Path) -> None:
    found = plain(tmp_path / "theirs.yaml", GIVEN["axolotl"] | {"no_such_option": 1})
    assert found["no_equal"]["no_such_option"] == "not a known option of Axolotl: look up what it does there"
