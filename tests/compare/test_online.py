"""Rows on the policy's own samples beside rows on the data: options, controls, costs, and what is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from prefopt.cli import main
from prefopt.compare import rounds
from prefopt.compare.costs import ChangedReward, SampleCount
from prefopt.compare.jobs import Job, JobResult
from prefopt.compare.rounds import Rounds
from prefopt.compare.spec import CHANGES, Comparison, Method
from prefopt.config.compose import compose
from prefopt.errors import UserError
from prefopt.rewards.combine import Combined
from prefopt.rewards.model import ModelReward
from prefopt.rewards.reward import Answer, FunctionReward
from tests.compare.outcomes import outcome, runs

Hold = Callable[..., dict[str, Any]]

DPO, RLOO = Method(name="dpo", loss="dpo"), Method(name="rloo", loss="rloo")
ONLINE_DPO = Method(name="dpo@rollouts", loss="dpo", overrides=("source=rollouts",))


def test_only_rows_with_samples_get_options_of_samples() -> None:
    shared = ("reward=m:f", "rollout.num_generations=8", "trainer.max_steps=4")
    xpo = Method(name="xpo", loss="xpo")  # on pairs, half of them from an opponent
    comparison = Comparison(methods=(DPO, ONLINE_DPO, RLOO, xpo), overrides=shared)
    assert comparison.words(xpo) == ["loss=xpo", "source=rollouts", *shared]
    assert comparison.words(DPO) == ["loss=dpo", "trainer.max_steps=4"]
    assert comparison.words(ONLINE_DPO) == ["loss=dpo", *shared, "source=rollouts"]
    assert comparison.words(RLOO) == ["loss=rloo", "source=rollouts", *shared]


def test_only_rows_with_a_value_model_get_one() -> None:
    shared, own = ("model.value_model=RM", "trainer.max_steps=4"), ("source=rollouts", "model.value_model=OTHER")
    ppo, other = Method(name="ppo", loss="ppo"), Method(name="other", loss="ppo", overrides=own)
    comparison = Comparison(methods=(DPO, ppo, other), overrides=shared)
    assert comparison.words(DPO) == ["loss=dpo", "trainer.max_steps=4"]
    assert comparison.words(ppo) == ["loss=ppo", "source=rollouts", *shared]
    assert comparison.words(other) == ["loss=ppo", *shared, *own]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_value_models_of_rows_start_as_reward_models(
    hold: Hold, words: list[str], model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row with a value model of its own is another job than one without, and one with other weights."""
    made = tmp_path / "rm"
    few = [word for word in words if word.partition("=")[0] not in ("budget.trials", "seeds", "workers")]
    assert main(["train", *few, "loss=bradley_terry", f"output_dir={made}"]) == 0
    method = Method(name="ppo", loss="ppo", overrides=(f"model.value_model={made}/final",))
    shared = (*few, f"reward={made}")

    def keys() -> list[str]:
        listed = Rounds(Comparison(methods=(method, DPO), overrides=shared, seeds=1))
        return [job.key for job in listed.finals({row.name: listed.tried(row.name, ())[0] for row in listed.methods})]

    found = hold("losses=[dpo]", "methods.ppo.loss=ppo", f"methods.ppo.model.value_model={made}/final", "seeds=1",
                 f"reward={made}", "rollout.max_new_tokens=4")  # fmt: skip
    assert {row["name"]: row["reason"] for row in found["methods"]} == dict.fromkeys(("base", "sft", "dpo", "ppo"), "")
    ppo = next(row for row in found["methods"] if row["name"] == "ppo")
    assert ppo["online"]
    assert f"model.value_model={made}/final" in ppo["command"]
    before = keys()
    weights = made / "final" / "model.safetensors"
    changed = {name: tensor + 1 for name, tensor in load_file(weights).items()}
    save_file(changed, weights, metadata={"format": "pt"})
    after = keys()
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False, True]
    assert main(["compare", *words, "losses=[dpo]", f"model.value_model={made}/final"]) == 2
    assert "no row has a value model; add one whose loss has, such as ppo" in capsys.readouterr().err
    given = [f"reward={made}", f"model.value_model={model_folder}"]
    assert main(["compare", *words, "losses=[dpo,ppo]", *given]) == 2
    assert "is no reward model: give final/ of a run" in capsys.readouterr().err


def test_one_option_puts_all_rows_but_sft_on_samples() -> None:
    comparison = Comparison(methods=(DPO, RLOO), overrides=("source=rollouts",), controls=True)
    online = {method.name: comparison.online(method) for method in comparison.rows()}
    assert online == {
        "sft": False, "dpo": True, "rloo": True, "dpo_again": True, "dpo_negated": True, "dpo_shuffled": True,
    }  # fmt: skip


def test_a_loss_whose_options_say_what_it_needs_is_a_row() -> None:
    mixed = Method(name="mixed", loss="mix")
    comparison = Comparison(methods=(mixed,), overrides=("model.value_model=RM",))
    assert not comparison.online(mixed)
    assert comparison.words(mixed) == ["loss=mix"]


def test_both_sources_have_controls() -> None:
    comparison = Comparison(methods=(DPO, RLOO), controls=True)
    names = [method.name for method in comparison.rows() if method.control]
    assert names == ["dpo_again", "rloo_again", "wrong_sign", "rloo_negated", "rloo_shuffled"]


def test_in_a_world_the_exact_reward_is_the_default_and_texts_a_step_are_equal(world: None) -> None:
    overrides = ("batch.records=64", "rollout.num_generations=8")
    own = Method(name="own", loss="rloo", overrides=("batch.records=5",))
    configs = Rounds(Comparison(methods=(DPO, RLOO, own), overrides=overrides)).configs
    assert {name: config.reward for name, config in configs.items()} == {
        "sft": None, "dpo": None, "rloo": "world", "own": "world",
    }  # fmt: skip
    assert {name: config.batch.records for name, config in configs.items()} == {
        "sft": 64, "dpo": 64, "rloo": 16, "own": 5,
    }  # fmt: skip


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> None:
    """No world is built: only its name is asked for."""
    monkeypatch.setattr(rounds, "data_of", lambda config: pytest.fail("data were prepared"))


def test_on_policy_losses_do_not_learn_from_data(world: None) -> None:
    with pytest.raises(UserError, match="loss=rloo learns from the policy's own samples"):
        Rounds(Comparison(methods=(RLOO,), overrides=("source=offline",)))


def test_other_sources_are_refused(world: None) -> None:
    for comparison in (
        Comparison(methods=(DPO,), overrides=("source=samples",)),
        Comparison(methods=(Method(name="own", loss="dpo", overrides=("source=rollout",)),)),
    ):
        with pytest.raises(UserError, match="a comparison trains on the data"):
            Rounds(comparison)


def test_rewards_of_controls() -> None:
    texts = ["a", "b", "c", "d"]
    answers = [Answer(prompt=(1,), completion=(i, 2), prompt_text="p", text=t, ended=True) for i, t in enumerate(texts)]
    reward = FunctionReward("m:f", lambda prompts, completions: [float(ord(text)) for text in completions])
    negated, shuffled = (ChangedReward(reward, change) for change in CHANGES)
    assert negated(answers).tolist() == [-97.0, -98.0, -99.0, -100.0]
    assert negated.name == "m:f, negated"
    assert sorted(shuffled(answers)) == [97.0, 98.0, 99.0, 100.0]
    assert np.array_equal(shuffled(answers), shuffled(answers))  # the same for a resume, and on every process
    orders = {tuple(ChangedReward(reward, "shuffled", seed)(answers)) for seed in range(8)}
    assert len(orders) > 4


def test_a_reward_model_costs_its_own_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its samples are no labels, but the records that it learned from are; one that nobody trained here is unknown."""
    monkeypatch.setattr("prefopt.rewards.model.is_reward_model", lambda path: True)
    run = tmp_path / "run"
    (run / "final").mkdir(parents=True)
    (run / "config.yaml").write_text("batch: {records: 8}\n")
    (run / "summary.json").write_text(json.dumps({"steps": 5, "counts": {"train": 100}, "seconds": {"train": 2.5}}))
    model, foreign = (
        ModelReward(path=str(path), writer=lambda: pytest.fail("asked")) for path in (run / "final", tmp_path / "other")
    )
    exact = FunctionReward("m:f", lambda prompts, completions: [0.0] * len(completions))
    count = SampleCount(tokens=30, texts=10, read=50)
    given = compose(["loss=rloo", "source=rollouts", "reward=m:f"])
    alone = count.costs(given, ChangedReward(model, "negated"))
    assert alone == {"tokens_sampled": 30, "tokens_scored": 100, "labels": 40, "reward_model_seconds": 2.5}
    both = count.costs(given, Combined("both", (model, model, exact), lambda scores: scores.sum(0)))
    assert (both["labels"], both["tokens_scored"]) == (50, 100)
    assert np.isnan(count.costs(given, foreign)["labels"])


def test_failed_controls_of_samples_are_said() -> None:
    comparison = Comparison(methods=(RLOO,), controls=True)
    rows = [runs("base", 0.0), runs("sft", 0.0), runs("rloo", 1.0), runs("rloo_again", 1.0)]
    right = outcome(*rows, runs("rloo_negated", -1.0), runs("rloo_shuffled", 0.0), comparison=comparison)
    assert not [warning for warning in right.warnings if "CONTROL" in warning]
    wrong = outcome(*rows, runs("rloo_negated", -1.0), runs("rloo_shuffled", 1.0), comparison=comparison)
    assert wrong.warnings[0].startswith("CONTROL FAILED: rloo with its rewards shuffled was not found worse than rloo")
    without = outcome(*rows, runs("rloo_shuffled", 0.0), comparison=comparison)
    assert without.warnings[0].startswith("CONTROL FAILED: rloo with its rewards negated did not run")


@pytest.mark.slow
def test_offline_and_online_rows_in_one_table(
    hold: Hold, ran: list[tuple[Job, JobResult]], tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every row says what it learned from and what that cost; a second call runs nothing, another reward its rows."""
    file = tmp_path / "length_reward.py"
    file.write_text("def short(prompts, completions):\n    return [-len(text) for text in completions]\n")
    given = ["losses=[dpo,dpo@rollouts,rloo]", "reward=length_reward.py:short", "rollout.num_generations=4",
             "rollout.max_new_tokens=4", "seeds=1"]  # fmt: skip
    found = {row["name"]: row for row in hold(*given)["methods"]}
    assert {name: row["online"] for name, row in found.items()} == {
        "base": False, "sft": False, "dpo": False, "dpo@rollouts": True, "rloo": True,
    }  # fmt: skip
    steps, texts = 2, 16  # of each step: 8 pairs, or 4 prompts with 4 samples
    assert found["dpo"]["labels"] == steps * 8
    assert found["dpo"]["tokens_sampled"] == 0
    for name in ("dpo@rollouts", "rloo"):
        row = found[name]
        assert row["reason"] == ""
        assert row["labels"] == steps * texts
        assert steps * texts <= row["tokens_sampled"] <= steps * texts * 4
        assert row["tokens_scored"] > row["tokens_sampled"]
        assert row["tokens_trained"] > 0
    assert "batch.records=4" in found["rloo"]["command"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "its own samples" in page
    assert "rloo: by step 2, reward" in page
    trained = {job.method for job, _ in ran}
    ran.clear()

    names = {word.split("=")[0] for word in given}
    kept = [word for word in words if word.split("=")[0] not in names]
    capsys.readouterr()
    assert main(["compare", *kept, *given, f"output_dir={tmp_path / 'out'}", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert {row["name"]: row["labels"] for row in again["methods"]} == {n: row["labels"] for n, row in found.items()}
    assert ran == []
    assert trained == {"base", "sft", "dpo", "dpo@rollouts", "rloo"}

    file.write_text(file.read_text().replace("-len", "len"))
    hold(*given)
    assert {job.method for job, _ in ran} == {"dpo@rollouts", "rloo"}
