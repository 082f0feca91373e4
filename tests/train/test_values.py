"""The value model of `ppo` in a real run: its own weights, its own gradient, its place in a checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prefopt.engine.forward import Options
from prefopt.engine.policy import Policy
from prefopt.engine.scoring import Branch, MicroBatch
from prefopt.engine.values import ValueModel, estimate
from prefopt.errors import UserError
from prefopt.losses.ppo import CutOff
from prefopt.losses.registry import load
from prefopt.models import adapters
from prefopt.plugin import Data
from prefopt.train import BatchConfig
from prefopt.train.sources.rollouts import Rollout
from tests.train import own_texts, tiny
from tests.train.test_reward_models import own_scores, reward_model, scores_of_texts

FOUR = dataclasses.replace(own_texts.ROLLOUT, updates=None)  # as the loss declares


def test_ppo_makes_four_updates_of_a_rollout_and_clips_nothing_in_the_first(tmp_path: Path) -> None:
    kept = own_texts.run("ppo", tmp_path, max_steps=8, rollout=FOUR, learning_rate=1e-2)
    assert ["reward" in log for log in kept.logs] == [True, False, False, False] * 2
    assert [log["clip_ratio"] for log in kept.logs][::4] == [0.0, 0.0]
    assert max(log["clip_ratio"] for log in kept.logs) > 0
    assert all(log["ratio/max_deviation"] < 1e-5 for log in kept.logs[::4])


def test_the_value_term_never_touches_the_policy(tmp_path: Path) -> None:
    """Neither through shared weights, nor through a norm that both are clipped by."""
    kept = [
        own_texts.run("ppo", tmp_path / str(c), max_steps=1, max_grad_norm=1e-3, loss={"value_coefficient": c})
        for c in (0.1, 100.0)
    ]
    assert tiny.apart(kept[0].weights, kept[1].weights) == 0
    policies = [k.trainer.policy for k in kept]
    assert {id(p) for p in policies[0].model.parameters()}.isdisjoint(id(p) for p in policies[0].values.parameters())
    assert not torch.equal(policies[0].values.head.bias, torch.zeros(1))


def test_values_learn_what_a_text_gets(tmp_path: Path) -> None:
    """From 0 towards the rewards, which are minus the mean token over 61."""
    loss = {"beta": 0.0, "value_epsilon": 10.0, "cut_off": CutOff.SCORE}
    kept = own_texts.run("ppo", tmp_path, max_steps=30, learning_rate=5e-3, loss=loss)
    value: Any = kept.trainer.policy.values
    records = tiny.records(Data.PAIRS, 9)
    found = np.array([text.mean() for e in estimate(value, records, max_tokens=500) for text in e.before])
    assert -0.7 < found.mean() < -0.2


def test_estimates_stand_before_each_token_and_behind_the_last() -> None:
    model = tiny.model()
    values = ValueModel(Policy(adapters.twin(model), "padded"))
    torch.nn.init.normal_(values.head.weight, generator=torch.Generator().manual_seed(0))
    records = tiny.records(Data.PAIRS, 3)
    for record, found in zip(records, estimate(values, records, max_tokens=200), strict=True):
        for text, before, after in zip(record.completions, found.before, found.after, strict=True):
            row = torch.tensor([*record.prompt, *text])[None]
            hidden = values.body.causal.model(input_ids=row).last_hidden_state[0, len(record.prompt) - 1 :]
            expected = values.head(hidden).squeeze(-1).detach().float().numpy()
            np.testing.assert_allclose([*before, after], expected, atol=1e-6)


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_the_policy_gives_its_values_beside_log_probs(layout: Any) -> None:
    policy = Policy(tiny.model(), layout)
    policy.values = ValueModel(Policy(adapters.twin(policy.model), layout))
    torch.nn.init.normal_(policy.values.head.weight, generator=torch.Generator().manual_seed(0))
    (record,) = tiny.records(Data.PAIRS, 1)
    batch = MicroBatch.of([Branch(record.prompt, c) for c in record.completions], layout)
    out = batch.forward(policy, Options(values=True))
    (found,) = estimate(policy.values, [record], max_tokens=200)
    assert out.stats.value is not None
    np.testing.assert_allclose(out.stats.value.detach().numpy(), np.concatenate(found.before), atol=1e-6)


def test_the_first_values_are_those_of_a_reward_model(tmp_path: Path) -> None:
    """Behind a text its score, and before each token the score of what stands before it."""
    started, looked = reward_model(), list[Rollout]()
    texts = tiny.records(Data.PAIRS, 4)
    expected = own_scores(started, texts)
    given = {"value_model": started, "max_steps": 2, "look": looked.append, "learning_rate": 1e-2}
    kept = own_texts.run("ppo", tmp_path, **given)
    drawn = [d for d in looked[0].batch.drawn or () if d.values is not None]
    found = np.array([after for d in drawn for after in d.values.after])  # type: ignore[union-attr]
    first = reward_model()
    answers = [np.array([*a.prompt, *a.completion]) for a in looked[0].answers]
    np.testing.assert_allclose(found, scores_of_texts(first, answers), rtol=0, atol=1e-6)
    before = drawn[0].values.before[0]  # type: ignore[union-attr]
    prompt = len(looked[0].answers[0].prompt)
    prefixes = [answers[0][: prompt + t] for t in range(len(before))]
    np.testing.assert_allclose(before, scores_of_texts(first, prefixes), rtol=0, atol=1e-6)
    assert kept.trainer.policy.values.body.causal is started
    assert np.abs(own_scores(started, texts) - expected).max() > 1e-3, "it is trained"


def test_a_value_model_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="LlamaForCausalLM as value_model: give a sequence classifier"):
        own_texts.run("ppo", tmp_path, value_model=tiny.model())
    with pytest.raises(UserError, match="this loss has no value model"):
        own_texts.run("rloo", tmp_path, value_model=reward_model())
    with pytest.raises(UserError, match="this loss has no value model"):
        tiny.make(load("dpo"), tiny.records(Data.PAIRS, 4), tmp_path, value_model=reward_model())


def test_a_resume_with_another_value_model_is_refused(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = own_texts.run("ppo", tmp_path / "a", value_model=reward_model(), **options)
    folder = tmp_path / "a" / "checkpoint-2"
    kept = own_texts.run("ppo", tmp_path / "b", value_model=reward_model(), **options, resume=folder)
    assert kept.losses == whole.losses
    with pytest.raises(UserError, match="another value model"):
        own_texts.run("ppo", tmp_path / "c", value_model=reward_model(seed=1), **options, resume=folder)


def test_splits_change_nothing(tmp_path: Path) -> None:
    whole = own_texts.run("ppo", tmp_path / "whole", max_steps=3, rollout=FOUR)
    parts = own_texts.run("ppo", tmp_path / "parts", max_steps=3, rollout=FOUR,
                          batch=BatchConfig(records=3, max_tokens=30))  # fmt: skip
    assert parts.losses == pytest.approx(whole.losses, rel=1e-6, abs=1e-7)
    assert tiny.apart(parts.weights, whole.weights) < 1e-6


def test_a_checkpoint_has_the_value_model_and_a_resume_is_the_same_run(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4, "rollout": FOUR}
    whole = own_texts.run("ppo", tmp_path / "whole", **options)
    folder = tmp_path / "whole" / "checkpoint-4"
    assert "head.weight" in load_file(folder / "values.safetensors")
    kept = own_texts.run("ppo", tmp_path / "again", **options, resume=folder)
    assert kept.losses == whole.losses
    assert tiny.apart(kept.weights, whole.weights) == 0
    values: list[Any] = [run.trainer.policy.values for run in (kept, whole)]
    assert tiny.apart(dict(values[0].named_parameters()), dict(values[1].named_parameters())) == 0


def test_an_adapter_gets_a_value_model_on_the_same_frozen_weights(tmp_path: Path) -> None:
    policy = adapters.attach(tiny.model(), adapters.PeftConfig(method="lora", r=2), seed=0).to(torch.float64)
    kept = own_texts.run("ppo", tmp_path, policy, max_steps=2)
    values: Any = kept.trainer.policy.values
    own = adapters.own_weights(values, policy)
    assert {name.rpartition(".")[0].endswith(("default", "head")) for name in own} == {True}
    assert all(load("ppo").needs.flags()[need] for need in ("values", "ended"))
