"""What is asked of FSDP2 and cannot be had is refused by name; `test_processes` has what can."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers.training_args import ParallelMode

from prefopt.errors import UserError
from prefopt.losses.registry import load
from prefopt.plugin import Data
from prefopt.train import fsdp
from tests.train import tiny


def arguments(**given: Any) -> Any:
    known = {"fsdp": True, "parallel_mode": ParallelMode.DISTRIBUTED, "load_best_model_at_end": False,
             "activation_checkpointing": False, "fsdp_plugin_args": {"fsdp_version": 2}}  # fmt: skip
    return SimpleNamespace(**known | given)


def test_a_single_process_has_nothing_to_share_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="over several processes, and this is a single one: start it with torchrun"):
        tiny.make(load("dpo"), tiny.records(Data.PAIRS, 4), tmp_path, fsdp=True)
    assert fsdp.SWITCH not in os.environ
    assert not (tmp_path / "reference").exists()


@pytest.mark.parametrize(
    ("given", "moving", "message"),
    [
        ({}, True, "a reference that follows the policy cannot be used with trainer.fsdp"),
        ({"load_best_model_at_end": True}, False, "take the checkpoint that `best` points at"),
        (
            {"activation_checkpointing": True, "fsdp_plugin_args": {"activation_checkpointing": True}},
            False,
            "are one too many",
        ),
    ],
)
def test_what_does_not_go_with_shards_is_refused(given: dict[str, Any], moving: bool, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fsdp.check(arguments(**given), moving_reference=moving)
    fsdp.check(arguments(**given | {"fsdp": False}), moving_reference=moving)


@pytest.mark.filterwarnings("ignore")
def test_fsdp1_is_refused_and_checkpoints_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="FSDP1 is not supported: set fsdp_version: 2"):
        fsdp.settings(arguments(fsdp_plugin_args={"fsdp_version": 1}))
    # As `accelerate launch --use_fsdp` asks for it.
    for name, value in {"SWITCH": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}.items():
        monkeypatch.setenv(fsdp.SWITCH if name == "SWITCH" else name, value)
    plugin = fsdp.settings(arguments(fsdp=None, fsdp_plugin_args=None))
    assert plugin is not None
    monkeypatch.setenv(fsdp.LOADING, "true")
    fsdp.load_whole_models()
    assert os.environ[fsdp.LOADING] == "false"


def test_the_switch_is_a_switch() -> None:
    from prefopt.config.compose import compose

    assert compose(["trainer.fsdp=true"]).trainer["fsdp"] is True
    with pytest.raises(UserError, match="fsdp"):
        compose(["trainer.fsdp=full_shard"])


def test_of_several_processes_the_first_one_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefopt.runs.progress import PlainProgress, RunProgress, run_progress

    monkeypatch.setenv("RANK", "1")
    assert type(run_progress("plain", "dpo")) is RunProgress
    monkeypatch.setenv("RANK", "0")
    assert type(run_progress("plain", "dpo")) is PlainProgress
