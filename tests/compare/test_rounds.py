"""What a comparison refuses before anything is trained, and what rows have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from prefopt.cli import main
from prefopt.compare import workers
from prefopt.compare.jobs import Job, JobResult
from prefopt.compare.rounds import Rounds, configuration
from prefopt.compare.spec import Comparison, MeasureConfig, Method
from prefopt.errors import UserError

Hold = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def nothing_is_trained(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "hold" not in request.fixturenames:
        monkeypatch.setattr(workers, "execute", lambda job: pytest.fail(f"{job.label} was run"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["methods.short.loss=ipo", "methods.short.data.eval_records=10"], "methods.short.data.eval_records=10: all"),
        (["methods.short.loss=ipo", "methods.short.data.max_records=24"], "run another comparison with it"),
        (["methods.dpo.model.dtype=bfloat16"], "methods.dpo.model.dtype=bfloat16: all rows need the same data"),
        (["methods.dpo.evaluation.kl_prompts=4"], "give evaluation.kl_prompts=4 to all"),
        (["methods.dpo.measure.prompts=4"], "methods.dpo.measure.prompts=4"),
        (["methods.dpo.data=auto"], "methods.dpo.data=auto"),
        (["methods.dpo.judge=m:f"], "methods.dpo.judge=m:f"),
        (["methods.sft.loss=dpo"], "the row 'sft' is always SFT on the chosen side; choose another name"),
        (["methods.base.loss=dpo"], "the row 'base' is always the model before training"),
        (["workers=-1"], "workers=-1 must be at least 0"),
        (["workers=1", "launcher=joblib"], "launcher=joblib starts the processes"),
        (["--list", "--json"], "--list and --json exclude each other"),
        (["sentinels.kl=3"], "sentinels.kl=3: `prefopt compare` does not read it; leave it out"),
        (["methods.dpo.trainer.save_steps=3"], "trainer.save_steps=3: `prefopt compare` does not read it"),
        (["methods.dpo.tracking=wandb"], "methods.dpo.tracking=wandb: it is of the whole comparison"),
        (["peft.r=4"], "peft.r=4: with these options nothing reads it; add peft=lora"),
        (["rollout.num_generations=8"], "rollout.num_generations=8: with these options nothing reads it"),
        (["methods.dpo.rollout.num_generations=8"], "rollout.num_generations=8: with these options nothing reads it"),
        (["measure.prompts=0"], "measure.prompts=0 must be at least 2"),
        (["measure.prompts=1"], "measure.prompts=1 must be at least 2"),
        (["measure.samples_per_prompt=0"], "measure.samples_per_prompt=0 must be at least 1"),
        (["measure.texts=-1"], "measure.texts=-1 must be at least 0"),
        (["judge=nosuchmodule:fn"], "judge=nosuchmodule:fn: No module named 'nosuchmodule'"),
        (["judge=json:lodas"], "judge=json:lodas: module 'json' has no attribute 'lodas'"),
        (["judge=/no/such/folder"], "cannot load a reward model from judge=/no/such/folder"),
        (["judge=json:loads", "evaluation.kl_prompts=0"], "needs texts: set measure.prompts"),
    ],
)
def test_what_cannot_be_is_refused_before_any_job(
    given: Sequence[str], said: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {word.split("=")[0] for word in given}
    kept = [word for word in words if word.split("=")[0] not in names]
    assert main(["compare", *kept, "losses=[dpo]", *given, f"output_dir={tmp_path / 'out'}"]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_policy_is_no_reward_model(words: list[str], model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *words, "losses=[dpo]", f"judge={model_folder}"]) == 2
    assert "has 2 outputs: a reward model has one" in capsys.readouterr().err


def test_a_reward_model_without_weights(
    words: list[str], model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoConfig, AutoTokenizer

    AutoConfig.from_pretrained(model_folder, num_labels=1).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path)
    assert main(["compare", *words, "losses=[dpo]", f"judge={tmp_path}"]) == 2
    assert "there are no *.safetensors in it" in capsys.readouterr().err


def test_a_world_has_no_judge_and_no_tasks() -> None:
    for measure in (MeasureConfig(judge="json:loads"), MeasureConfig(tasks=("even",))):
        with pytest.raises(UserError, match="for real data"):
            Rounds(Comparison(methods=(Method(name="dpo", loss="dpo"),), measure=measure))


def test_an_api_call_is_refused_the_same_way() -> None:
    for override in ("+data.max_records=3", "++model.dtype=float64", "data@data=auto"):
        with pytest.raises(UserError, match="all rows need the same data"):
            Rounds(Comparison(methods=(Method(name="dpo", loss="dpo", overrides=(override,)),)))


def test_a_trial_that_moved_too_far_counts_as_diverged_and_the_rate_goes_down(
    hold: Hold, made_up: Callable[..., list[Job]], tmp_path: Path
) -> None:
    """As many trials for every method; of a method that never stays within the bound there is no verdict."""

    def far(job: Job, result: JobResult) -> None:
        rate = job.config.trainer["learning_rate"]
        result.figures["kl"] = 17.0 if job.method == "wild" or (job.method == "simpo" and rate > 0.005) else 1.0
        if job.method == "lost":
            result.figures["kl"] = float("nan")

    made_up(far)
    given = ("losses=[dpo,simpo]", "methods.wild.loss=ipo", "methods.lost.loss=orpo", "seeds=1")
    rows = {row["name"]: row for row in hold(*given, "budget.trials=2")["methods"]}
    assert [trial["status"] for trial in rows["simpo"]["trials"]] == ["diverged", "ok"]
    assert rows["simpo"]["trials"][0]["reason"] == "KL 17 is past budget.max_kl=10"
    assert rows["simpo"]["chosen"] == {"beta": 2.0, "learning_rate": pytest.approx(0.01 / 3)}
    assert [trial["setting"]["learning_rate"] for trial in rows["dpo"]["trials"]] == [0.01, 0.01]
    assert rows["wild"]["chosen"] is None
    assert rows["wild"]["reason"] == "diverged: KL 17 is past budget.max_kl=10"
    assert rows["lost"]["reason"] == "diverged: KL nan is past budget.max_kl=10"
    assert "KL 17 is past budget.max_kl=10" in (tmp_path / "out" / "report.html").read_text()
    rows = {row["name"]: row for row in hold(*given, "budget.trials=2", "budget.max_kl=null")["methods"]}
    assert {trial["status"] for row in rows.values() for trial in row["trials"]} == {"ok"}


@pytest.mark.parametrize("bound", ["0", "-1"])
def test_a_bound_that_no_run_keeps_is_refused(bound: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *words, "losses=[dpo]", f"budget.max_kl={bound}"]) == 2
    assert "must be above 0, or null for no bound" in capsys.readouterr().err


def test_sft_starts_with_the_rate_of_its_own_preset() -> None:
    """Unless the user gives a rate, or a preset of options, to all."""

    def rate(*overrides: str) -> float:
        shared = ("model.path=org/name", "data.path=pairs.jsonl", *overrides)
        comparison = Comparison(methods=(Method(name="dpo", loss="dpo"),), overrides=shared)
        sft = next(row for row in comparison.rows() if row.name == "sft")
        return float(configuration(comparison, sft).trainer["learning_rate"])

    assert rate() == 2e-5
    assert rate("trainer.learning_rate=3e-6") == 3e-6
    assert rate("trainer=default") == 1e-6


def test_steps_of_one_row_are_said(hold: Hold, made_up: Callable[..., list[Job]]) -> None:
    made_up()
    found = hold("losses=[dpo]", "methods.longer.loss=dpo", "methods.longer.trainer.max_steps=3", "seeds=1")
    said = [warning for warning in found["warnings"] if "applies to this row alone" in warning]
    assert said == [
        "longer: trainer.max_steps=3 applies to this row alone: the others train with other steps or another batch"
    ]
    hold("losses=[dpo]", "methods.faster.loss=dpo", "methods.faster.trainer.learning_rate=3e-2", "seeds=1")
    assert json.dumps(found).count("applies to this row alone") == 1
