"""Command lines of other trainers, and files that are not their settings."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pytest
from transformers import TrainingArguments

from prefopt.config.compose import compose
from prefopt.errors import UserError
from prefopt.migrate import axolotl, llamafactory, swift
from prefopt.migrate.convert import convert
from tests.migrate.settings import OPTIONS, composed


def test_a_command_line(tmp_path: Path) -> None:
    words = shlex.split(
        "trl dpo --model_name_or_path org/model --dataset_name org/data --beta 0.05 --learning_rate=5e-7 --use_peft "
        "--lora_r 8 --lora_target_modules q_proj v_proj --max_prompt_length 128 --eval_strategy steps --bf16 false"
    )
    config = composed(words, tmp_path)
    assert (config.model.path, config.data.path, config.data.eval_split) == ("org/model", "org/data", "test")
    assert (config.peft.method, config.peft.r, config.peft.target_modules) == ("lora", 8, ["q_proj", "v_proj"])
    assert config.trainer["learning_rate"] == 5e-7
    assert config.trainer["bf16"] is False
    found = convert(words)
    assert "max_prompt_length" in found.no_equal
    by_words, by_file = compose(found.overrides).plain(), config.plain()
    del by_words["output_dir"], by_file["output_dir"]  # they have the time in them
    assert by_words == by_file


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("training_args.bin", "\x80\x04", "pickle"),
        ("broken.json", "{", "cannot be read"),
        ("list.yaml", "[1, 2]", "not a mapping"),
        ("object.yaml", "!!python/object/apply:os.system ['true']", "cannot be read"),
        ("unknown.json", '{"beta": 0.1}', "--class"),
        ("swift.yaml", "tuner_type: lora", "--class 'swift sft' .* --class 'swift rlhf'"),
        ("ppo.yaml", "stage: ppo", "not offered"),
        ("cpo.json", '{"loss_type": "hinge", "cpo_alpha": 1}', "slic_hf"),
    ],
)
def test_refusals_name_the_remedy(tmp_path: Path, name: str, text: str, says: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        convert(str(path))


def test_no_mark_of_a_program_is_an_option_of_another() -> None:
    """Files are told apart by the options that only one program has."""
    options = {name: set(given) for name, given in OPTIONS.items()}
    for cls in (pytest.importorskip("trl", reason="the peers extra is not installed").DPOConfig, TrainingArguments):
        options[cls.__name__] = {field.name for field in dataclasses.fields(cls)} | {"rpo_alpha"}  # of older versions
    for program, marks in (("axolotl", axolotl.MARKS), ("swift", swift.MARKS), ("llamafactory", llamafactory.MARKS)):
        others = {name: marks & known for name, known in options.items() if name != program}
        assert not any(others.values()), (program, others)
