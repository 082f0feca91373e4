"""The policy's own samples: what is drawn, what is learnt from it, and that splits and kills change neither."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import TrainerCallback

from prefopt.errors import Stopped, TrainingError, UserError
from prefopt.losses.ppo import CutOff
from prefopt.losses.registry import load
from prefopt.models import adapters
from prefopt.rewards.reward import Answer
from prefopt.train import BatchConfig
from prefopt.train.callbacks import RolloutsFile
from prefopt.train.checkpoints import checkpoints, last_whole
from prefopt.train.signals import Signals
from prefopt.train.sources.labels import LabelRule
from prefopt.train.sources.rollouts import Rollout, Rollouts
from tests.losses.names import ON_POLICY
from tests.train import own_texts, tiny

OFFLINE = (
    "dpo",
    "ipo_sum",
    "orpo",
    "simpo",
    "kto_zero",
    "bco",
    "aot",
    "plackett_luce",
    "sft",
    "rebel",
    "tdpo2",
    "tr_dpo",
)


class AllEqual(own_texts.LowTokens):
    """The same reward for every text."""

    name = "all equal"

    def __call__(self, answers: Sequence[Answer], /) -> NDArray[np.float64]:
        return np.full(len(answers), 0.1)


def source(name: str = "rloo", **changes: Any) -> Rollouts:
    """The source of a run that is ready, but not started."""
    made = tiny.make(load(name), own_texts.PROMPTS, Path(changes.pop("folder")), **own_texts.options(**changes))
    found = made.sources["train"]
    assert isinstance(found, Rollouts)
    return found


@pytest.mark.parametrize("name", [*ON_POLICY, *OFFLINE])
def test_every_loss_learns_from_own_texts(name: str, tmp_path: Path) -> None:
    """Step 0 is checked against the plugin by the trainer itself, and the sampler against the scorer."""
    kept = own_texts.run(name, tmp_path)
    assert tiny.apart(kept.weights, dict(tiny.model().named_parameters())) > 1e-4
    for log in kept.logs:
        assert {"reward", "reward_std", "entropy", "completions/mean_length", "completions/ended"} <= log.keys()
        assert 0 <= log["ratio/max_deviation"] < 1e-5
        assert math.isfinite(log["loss"])
    if load(name).needs.reference:
        assert kept.logs[0]["kl"] == pytest.approx(0, abs=1e-5)
        assert abs(kept.logs[1]["kl"]) > 1e-4


def test_rloo_raises_the_reward_it_is_given(tmp_path: Path) -> None:
    kept = own_texts.run("rloo", tmp_path, max_steps=30, loss={"beta": 0.0})
    rewards = [log["reward"] for log in kept.logs]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.1


def test_draws_depend_on_seed_rollout_and_prompt_alone(tmp_path: Path) -> None:
    def texts(rollout: Rollout) -> dict[tuple[int, ...], list[tuple[int, ...]]]:
        found: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for answer in rollout.answers:
            found.setdefault(answer.prompt, []).append(answer.completion)
        return found

    one = source(folder=tmp_path)
    all_at_once = source(folder=tmp_path, batch=BatchConfig(records=6))
    first, second = texts(one.roll(0)), texts(one.roll(1))
    whole = texts(all_at_once.roll(0))
    assert first == {prompt: whole[prompt] for prompt in first}
    assert len(first) == len(second) == 3
    assert first.keys().isdisjoint(second.keys()), "an epoch has every prompt once"
    again = texts(one.roll(2))  # the next epoch, where prompts come again
    assert any(again[prompt] != whole[prompt] for prompt in again)
    other = texts(source(folder=tmp_path, seed=1, batch=BatchConfig(records=6)).roll(0))
    assert all(other[prompt] != whole[prompt] for prompt in whole)


@pytest.mark.parametrize("name", ["rloo", "grpo", "reinforce_pp", "dpo", "aot"])
def test_splits_change_nothing(name: str, tmp_path: Path) -> None:
    whole = own_texts.run(name, tmp_path / "whole")
    parts = own_texts.run(name, tmp_path / "parts", batch=BatchConfig(records=3, max_tokens=30))
    assert parts.losses == pytest.approx(whole.losses, rel=1e-6, abs=1e-7)
    assert tiny.apart(parts.weights, whole.weights) < 1e-6


@pytest.mark.parametrize("updates", [1, 2])
def test_a_resume_draws_the_same_texts(updates: int, tmp_path: Path) -> None:
    rollout = dataclasses.replace(own_texts.ROLLOUT, updates=updates)
    options: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "rollout": rollout}
    whole = own_texts.run("grpo", tmp_path / "whole", **options)
    kept = own_texts.run("grpo", tmp_path / "again", **options, resume=tmp_path / "whole" / "checkpoint-2")
    assert kept.losses == whole.losses
    assert tiny.apart(kept.weights, whole.weights) == 0


def test_several_updates_learn_from_the_same_texts(tmp_path: Path) -> None:
    looked: list[Rollout] = []
    rollout = dataclasses.replace(own_texts.ROLLOUT, updates=3)
    kept = own_texts.run("grpo", tmp_path, max_steps=6, rollout=rollout, look=looked.append)
    assert [made.step for made in looked] == [1, 4]
    assert ["reward" in log for log in kept.logs] == [True, False, False, True, False, False]
    fresh = ["ratio/max_deviation" in log for log in kept.logs]  # where the policy still is what wrote them
    assert fresh == [True, False, False, True, False, False]


def test_a_signal_waits_for_the_end_of_the_rollout(tmp_path: Path) -> None:
    """A checkpoint in its middle has no samples to resume with."""

    class Signal(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                signal.raise_signal(signal.SIGTERM)

    rollout = dataclasses.replace(own_texts.ROLLOUT, updates=2)
    options: dict[str, Any] = {"max_steps": 6, "rollout": rollout}
    whole = own_texts.run("grpo", tmp_path / "whole", **options)
    folder = tmp_path / "cut"
    with Signals(print) as signals, pytest.raises(Stopped):
        own_texts.run("grpo", folder, callbacks=[Signal(), signals], **options)
    assert [c.name for c in checkpoints(folder)] == ["checkpoint-2"]
    resumed = own_texts.run("grpo", folder, resume=folder / "checkpoint-2", **options)
    assert tiny.apart(resumed.weights, whole.weights) == 0


def test_a_checkpoint_within_a_rollout_is_no_place_to_resume_from(tmp_path: Path) -> None:
    rollout = dataclasses.replace(own_texts.ROLLOUT, updates=2)
    own_texts.run("grpo", tmp_path, max_steps=3, rollout=rollout, save_strategy="steps", save_steps=2)
    trainer = tiny.make(load("grpo"), own_texts.PROMPTS, tmp_path, max_steps=3, **own_texts.options(rollout=rollout))
    trainer.train(tmp_path / "checkpoint-2")
    trainer.save_last_step()
    said: list[str] = []
    assert last_whole(tmp_path, said.append) == tmp_path / "checkpoint-2"
    assert said == ["checkpoint-3 is passed over: it has weights alone (save_only_model, or within a rollout)"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rollout": dataclasses.replace(own_texts.ROLLOUT, temperature=0.5)}, "rollout.temperature (1.0, now 0.5)"),
        ({"reward": own_texts.HighTokens()}, "reward (low tokens, now high tokens)"),
    ],
)
def test_a_resume_with_another_way_to_draw_is_refused_by_its_name(
    changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    own_texts.run("dpo", tmp_path, save_strategy="steps", save_steps=1)
    with pytest.raises(UserError, match=re.escape(f"it was made with another {said}; give what it was made with")):
        own_texts.run("dpo", tmp_path / "b", resume=tmp_path / "checkpoint-1", **changed)


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_a_forward_has_room_for_the_samples_of_a_prompt_in_its_layout(layout: str, tmp_path: Path) -> None:
    """Padded rows repeat the prompt for each sample."""
    rollout = dataclasses.replace(own_texts.ROLLOUT, num_generations=32, max_new_tokens=60)
    kept = own_texts.run("rloo", tmp_path, max_steps=1, rollout=rollout, batch=BatchConfig(records=1, layout=layout))
    assert len(kept.losses) == 1


def test_options_of_the_trainer_are_checked_as_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.learning_rate=-1\.0 must be at least 0"):
        own_texts.run("rloo", tmp_path, learning_rate=-1.0)


def test_a_checkpoint_within_a_rollout_is_refused(tmp_path: Path) -> None:
    rollout = dataclasses.replace(own_texts.ROLLOUT, updates=2)
    with pytest.raises(UserError, match=r"save_steps=3 must be a multiple of rollout\.updates=2"):
        own_texts.run("grpo", tmp_path, rollout=rollout, save_strategy="steps", save_steps=3)
    with pytest.raises(UserError, match="step 2 is in the middle of a rollout"):
        source("grpo", folder=tmp_path, rollout=rollout).step(1)


def test_texts_and_advantages_are_those_of_the_loss(tmp_path: Path) -> None:
    """The targets of the whole rollout, computed from its records by hand."""
    made = source(folder=tmp_path)
    rollout = made.roll(0)
    batch, advantages = rollout.batch, []
    for scores in rollout.rewards:  # policy = reference: R = r
        advantages.append([score - (scores.sum() - score) / 3 for score in scores])
    found = [drawn.targets["advantage"] for drawn in batch.drawn or ()]
    np.testing.assert_allclose(found, advantages, atol=1e-5)
    assert [tuple(c.tolist()) for r in batch.feed.records for c in r.completions] == [
        a.completion for a in rollout.answers
    ]


def test_each_text_has_its_own_reward(tmp_path: Path) -> None:
    rollout = source(folder=tmp_path).roll(0)
    np.testing.assert_allclose(rollout.rewards.reshape(-1), own_texts.LowTokens()(rollout.answers))


def test_kl_is_the_mean_log_ratio_of_texts(tmp_path: Path) -> None:
    """In nats a text, by plain forwards of both models."""
    other = tiny.model(5)
    made = tiny.make(load("rloo"), own_texts.PROMPTS, tmp_path, **own_texts.options(reference=other))
    rollout = made.sources["train"].roll(0)  # type: ignore[attr-defined]
    ratios = [
        (tiny.plain_logps(tiny.model(), np.array(a.prompt), np.array(a.completion)).sum()
         - tiny.plain_logps(other, np.array(a.prompt), np.array(a.completion)).sum()).item()
        for a in rollout.answers
    ]  # fmt: skip
    assert rollout.batch.figures["kl"] == pytest.approx(np.mean(ratios), abs=1e-5)


def test_dropout_is_off_where_texts_are_learnt_from(tmp_path: Path) -> None:
    kept = own_texts.run("rloo", tmp_path, tiny.model(attention_dropout=0.5))
    assert all(log["ratio/max_deviation"] < 1e-5 for log in kept.logs)


def test_a_text_that_was_cut_off_costs_and_stays_in_the_baseline(tmp_path: Path) -> None:
    rollout = dataclasses.replace(own_texts.ROLLOUT, missing_end_penalty=2.0)
    plain, penalised = (source(folder=tmp_path, rollout=r).roll(0) for r in (own_texts.ROLLOUT, rollout))
    cut = np.array([not answer.ended for answer in plain.answers]).reshape(plain.rewards.shape)
    assert cut.any()
    assert not cut.all()
    assert all(answer.ended == (answer.completion[-1] == 2) for answer in plain.answers)
    own = own_texts.LowTokens()(plain.answers).reshape(cut.shape)
    np.testing.assert_allclose(plain.rewards, own)
    np.testing.assert_allclose(penalised.rewards, own - 2.0 * cut)


def test_labels_are_drawn_by_bradley_terry(tmp_path: Path) -> None:
    found = {
        label: source(
            "dpo", folder=tmp_path, rollout=dataclasses.replace(own_texts.ROLLOUT, label=label, allow_argmax=True)
        ).roll(0)
        for label in LabelRule
    }
    sure = found[LabelRule.ARGMAX].batch.feed.records
    assert all(r.scores is not None and r.scores[0] > r.scores[1] for r in sure)
    soft = found[LabelRule.SOFT].batch.feed.records
    assert len(soft) == 2 * len(sure)
    assert sum(r.weight for r in soft) == pytest.approx(len(soft)), "the mean over records is one over pairs of texts"
    assert len(found[LabelRule.BT].batch.feed.records) == len(sure)


@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_ratios_are_of_the_distribution_drawn_from(name: str, tmp_path: Path) -> None:
    """At another temperature, sampler, scorer and reference divide the logits by it."""
    rollout = dataclasses.replace(own_texts.ROLLOUT, temperature=0.6)
    kept = own_texts.run(name, tmp_path / "a", rollout=rollout)
    for log in kept.logs:
        assert 0 <= log["ratio/max_deviation"] < 1e-5
    assert kept.logs[0]["kl"] == pytest.approx(0, abs=1e-5)
    made = source(name, folder=tmp_path / "b", rollout=rollout)
    drawn = made.roll(0)
    answer, logps = drawn.answers[0], (drawn.batch.drawn or ())[0].logps[0]
    ids = torch.tensor([[*answer.prompt, *answer.completion]])
    logits = made.policy.model(ids).logits[0, len(answer.prompt) - 1 : -1].detach().double()
    expected = (logits / 0.6).log_softmax(-1)[range(len(logps)), list(answer.completion)]
    np.testing.assert_allclose(logps, expected, atol=1e-6)
    assert source("dpo", folder=tmp_path / "c", rollout=rollout).roll(0).batch.temperature == 1.0


def test_the_models_own_generation_config_changes_nothing(tmp_path: Path) -> None:
    """Its temperature, top-k and penalties would make ratios those of another distribution."""
    plain, own = source(folder=tmp_path / "a"), source(folder=tmp_path / "b")
    config: Any = own.policy.model.generation_config
    config.update(do_sample=True, temperature=0.1, top_k=1, top_p=0.1, repetition_penalty=5.0, max_new_tokens=1)
    assert [a.completion for a in own.roll(0).answers] == [a.completion for a in plain.roll(0).answers]


# ---- samples of an opponent


@pytest.mark.parametrize(("name", "mix"), [("xpo", 1.0), ("nash_md", 0.25)])
def test_every_second_sample_is_of_the_mixture(name: str, mix: float, tmp_path: Path) -> None:
    """Its tokens have the log-probs of a plain forward of both models; the policy's own samples keep their draws."""
    settings = {} if name == "xpo" else {"mixture_coef": mix}
    made = tiny.make(load(name, **settings), own_texts.PROMPTS, tmp_path, **own_texts.options(reference=tiny.model(5)))
    found: Any = made.sources["train"]
    prompts = found._prompts(0)
    for prompt, group in zip(prompts, found._samples(0, prompts), strict=True):
        for place, text in enumerate(group):
            row = torch.tensor([*prompt.tokens, *text.tokens])[None]
            ours, theirs = (tiny.model(seed)(input_ids=row).logits[0, len(prompt.tokens) - 1 : -1] for seed in (0, 5))
            logits = torch.lerp(ours, theirs, mix if place % 2 else 0.0)
            logp = logits.log_softmax(-1).gather(1, torch.tensor(text.tokens)[:, None])[:, 0]
            np.testing.assert_allclose(text.logps, logp.detach().numpy(), atol=1e-6)


def test_a_record_knows_which_side_the_opponent_wrote(tmp_path: Path) -> None:
    made = tiny.make(load("xpo"), own_texts.PROMPTS, tmp_path, **own_texts.options(reference=tiny.model(5)))
    source: Any = made.sources["train"]
    rollout = source.roll(0)
    texts = [a.completion for a in rollout.answers]
    for record, drawn in zip(rollout.batch.feed.records, rollout.batch.drawn, strict=True):
        for completion, by_opponent in zip(record.completions, drawn.opponent, strict=True):
            assert by_opponent == bool(texts.index(tuple(completion.tolist())) % 2)
    figures = rollout.batch.figures
    assert figures["reward"] == pytest.approx(rollout.rewards[:, ::2].mean())
    assert figures["completions/mean_length"] == pytest.approx(np.mean([len(t) for t in texts[::2]]))


def test_samples_of_a_step_are_a_table_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[Any] = []
    run = SimpleNamespace(log=lambda row, commit: logged.append((row["rollout"], commit)))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=run, Table=dict))
    RolloutsFile(tmp_path / "rollouts.jsonl").add(source(folder=tmp_path).roll(0))
    (table, commit), rows = logged[0], (tmp_path / "rollouts.jsonl").read_text().splitlines()
    assert commit is False, "the figures of the step complete the row"
    assert table["columns"] == ["step", "weights", "prompt", "text", "reward", "ended", "advantage"]
    assert table["data"] == [list(json.loads(row).values()) for row in rows]


# ---- what stops a run


def test_another_sampler_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of another model, as of a server with stale weights."""
    trainer = tiny.make(load("rloo"), own_texts.PROMPTS, tmp_path, max_steps=2, **own_texts.options())
    found: Any = trainer.sources["train"]
    found.policy = type(trainer.policy)(tiny.model(seed=1), trainer.policy.layout)
    with pytest.raises(TrainingError, match=r"the sampler is not the model that is trained: the text .* was drawn"):
        trainer.train()


@pytest.mark.parametrize("name", ["grpo", "reinforce_pp", "ppo", "raft"])
def test_equal_rewards_leave_finite_steps(name: str, tmp_path: Path) -> None:
    """Whitening and standard deviations of nothing do not make advantages of rounding."""
    loss = {"cut_off": CutOff.SCORE} if name == "ppo" else {}
    kept = own_texts.run(name, tmp_path, reward=AllEqual(), loss={"beta": 0.0, **loss}, max_steps=2)
    assert all(math.isfinite(log["loss"]) and log["reward_std"] == 0 for log in kept.logs)
    if name in ("grpo", "reinforce_pp"):  # the others learn from likelihoods and values
        assert tiny.apart(kept.weights, dict(tiny.model().named_parameters())) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a"], "must give numbers"),
        ([1.0], r"numbers of shape \(1,\) for 12 completions"),
        ([float("nan")] * 12, "gave nan for the completion"),
    ],
)
def test_a_reward_that_cannot_be_used_is_named(given: Any, message: str, tmp_path: Path) -> None:
    class Reward:
        name = "mine"

        def __call__(self, answers: Sequence[Answer], /) -> Any:
            return given

    with pytest.raises(UserError, match=f"reward=mine .*{message}|reward=mine {message}"):
        own_texts.run("rloo", tmp_path, reward=Reward())


def test_a_loss_on_own_texts_is_not_trained_on_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="learns from the policy's own samples: train with source=rollouts"):
        tiny.run(load("rloo"), own_texts.PROMPTS, tmp_path)


def test_an_adapter_learns_and_its_base_is_the_reference(tmp_path: Path) -> None:
    policy = adapters.attach(tiny.model(), adapters.PeftConfig(method="lora", r=2), seed=0).to(torch.float64)
    kept = own_texts.run("rloo", tmp_path, policy, max_steps=3)
    assert kept.logs[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert abs(kept.logs[-1]["kl"]) > 1e-5


def test_targets_see_the_whole_rollout_once(tmp_path: Path) -> None:
    """Statistics over a batch, such as those of whitening, are those of all its records in one call."""
    made = source("reinforce_pp", folder=tmp_path)
    batch = made.roll(0).batch
    drawn = batch.drawn or ()
    tokens = np.concatenate([d.targets["advantage"][k][: len(t)] for d in drawn for k, t in enumerate(d.logps)])
    assert tokens.mean() == pytest.approx(0, abs=1e-5)
    assert tokens.std(ddof=1) == pytest.approx(1, abs=1e-5)
