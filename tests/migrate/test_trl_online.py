"""TRL's configs of training on own samples, and of reward models."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import UserError
from prefopt.losses._rollouts import KL
from prefopt.migrate.convert import convert
from prefopt.migrate.trl_online import DEFAULTS
from prefopt.train.sources.labels import LabelRule
from tests.migrate.settings import composed, written

BATCH = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}


def ours(folder: Path, kind: str, **settings: Any) -> Any:
    return composed(written(folder, BATCH | settings), folder, kind=kind)


def test_rloo(tmp_path: Path) -> None:
    found = ours(tmp_path, "RLOOConfig", beta=0.1, num_generations=4, max_completion_length=64, num_iterations=2)
    assert (found.loss_name, found.loss.beta, found.source) == ("rloo", 0.1, "rollouts")
    assert (found.rollout.num_generations, found.rollout.max_new_tokens, found.rollout.updates) == (4, 64, 2)
    assert found.batch.records == 8 * 2 // 4  # TRL counts completions
    assert found.trainer["learning_rate"] == 1e-6


def test_grpo_of_the_paper(tmp_path: Path) -> None:
    found = ours(tmp_path, "GRPOConfig", loss_type="grpo", beta=0.04, epsilon=0.1)
    assert (found.loss_name, found.loss.beta, found.loss.epsilon, found.loss.kl) == ("grpo", 0.04, 0.1, KL.LOSS_K3)
    assert found.rollout.num_generations == 8


def test_the_defaults_of_grpo_say_what_they_are_not(tmp_path: Path) -> None:
    source = written(tmp_path, {"scale_rewards": "group", "top_p": 0.9})
    assert "dapo" in convert(source).no_equal["loss_type"]
    assert "own distribution" in convert(source).no_equal["top_p"]
    assert composed(source, tmp_path).loss.kl is KL.NONE  # type: ignore[attr-defined]
    assert any("reward functions are code" in text for text in convert(source).differs)


def test_dr_grpo_divides_by_the_longest_length(tmp_path: Path) -> None:
    found = ours(tmp_path, "GRPOConfig", loss_type="dr_grpo", scale_rewards="none", max_completion_length=99)
    assert (found.loss_name, found.loss.length) == ("dr_grpo", 99)


def test_online_dpo_keeps_its_labels(tmp_path: Path) -> None:
    settings = {"reward_model_path": "rm", "beta": [0.2], "missing_eos_penalty": 1.0}
    found = ours(tmp_path, "OnlineDPOConfig", **settings)
    assert (found.loss_name, found.loss.beta, found.reward) == ("dpo", 0.2, "rm")
    assert (found.rollout.label, found.rollout.allow_argmax) == (LabelRule.ARGMAX, True)
    assert (found.rollout.temperature, found.rollout.missing_end_penalty, found.batch.records) == (0.9, 1.0, 16)


def test_reward_models(tmp_path: Path) -> None:
    found = ours(tmp_path, "RewardConfig", center_rewards_coefficient=0.01)
    assert (found.loss_name, found.loss.centre, found.source) == ("bradley_terry", 0.01, "offline")


@pytest.mark.parametrize(("verb", "name"), [("grpo", "grpo"), ("rloo", "rloo"), ("reward", "bradley_terry")])
def test_command_lines(verb: str, name: str) -> None:
    assert convert(["trl", verb, "--learning_rate", "2e-6"]).groups["loss"] == name


def test_a_loss_of_grpo_that_is_not_here_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loss_type 'sapo' of GRPOConfig has no equivalent here"):
        convert(written(tmp_path, {"loss_type": "sapo"}), kind="GRPOConfig")


@pytest.mark.parametrize("kind", DEFAULTS)
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_a_whole_json_lists_nothing_as_lost_that_has_its_default(kind: str, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="the peers extra is not installed")
    from trl.experimental.online_dpo import OnlineDPOConfig

    cls = OnlineDPOConfig if kind == "OnlineDPOConfig" else getattr(trl, kind)
    fields = {f.name: f.default for f in dataclasses.fields(cls)}
    assert {name: fields[name] for name in DEFAULTS[kind]} == DEFAULTS[kind]
    path = tmp_path / "config.json"
    path.write_text(cls(output_dir=str(tmp_path), bf16=False, report_to="none").to_json_string())
    assert set(convert(str(path), kind=kind).no_equal) <= {"loss_type"}
