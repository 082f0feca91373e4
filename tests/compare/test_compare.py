"""`prefopt compare`, from the command line to the result files, on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from prefopt.cli import main
from prefopt.common.locks import locked_folder
from prefopt.compare import execute, workers
from prefopt.compare.jobs import Job, JobResult, failure
from prefopt.evaluate import judge as judges

Hold = Callable[..., dict[str, Any]]


def test_a_comparison_leaves_what_other_tools_read(hold: Hold, tmp_path: Path) -> None:
    found = hold("losses=[dpo,simpo]", "controls=true")
    rows = {row["name"]: row for row in found["methods"]}
    assert set(rows) == {"base", "sft", "dpo", "simpo", "dpo_again", "wrong_sign"}
    assert found["metric"] == "accuracy"
    for name, row in rows.items():
        assert row["interval"][0] <= row["point"] <= row["interval"][1]
        assert row["cost"]["peak_memory_mib"] > 0
        if name != "base":
            assert row["chosen"]["learning_rate"] == 0.01
            assert row["cost"]["trials"] == 1
            assert row["cost"]["tokens"] > 0
            assert len(row["by_seed"]) == 2
    assert rows["base"]["figures"]["kl"] == pytest.approx(0, abs=1e-5)
    assert rows["base"]["figures"]["accuracy"] == 0.5  # no log-ratio, all ties
    assert rows["dpo"]["figures"]["kl"] > 0
    assert {"accuracy_sum", "accuracy_mean", "margin", "chosen_logp", "length"} <= rows["simpo"]["figures"].keys()
    assert len(found["verdicts"]) == 6 * 5 // 2
    for verdict in found["verdicts"]:
        assert {"a", "b", "metric", "p_holm", "effect", "difference"} <= verdict.keys()
        assert verdict["verdict"] in ("better", "worse", "cannot_tell")
    assert "| dpo |" in (tmp_path / "out" / "results.md").read_text()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "prefopt train loss=simpo" in page.replace("&#39;", "'")
    assert (tmp_path / "out" / "jobs").is_dir()
    assert not list((tmp_path / "out" / "jobs").glob("tmp-*"))


def test_every_method_is_fed_the_same_and_starts_the_same(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    """The records, their order (the seed), the first weights and the steps are those of every other method."""
    seen: list[Job] = []
    run = execute._execute
    monkeypatch.setattr(workers, "_execute", lambda job: (seen.append(job), run(job))[1])
    hold("losses=[dpo,orpo]", "budget.trials=2", "seeds=1")
    trained = [job for job in seen if job.trained]
    assert len({tuple(job.fingerprints.items()) for job in trained}) == 1
    assert {job.config.seed for job in trained if job.split == "validation"} == {0}
    assert {job.config.seed for job in trained if job.split == "test"} == {1}
    assert len({str(job.config.batch) + str(job.config.model) for job in trained}) == 1
    assert {job.config.trainer["max_steps"] for job in trained} == {2}


def test_a_second_call_runs_nothing_and_another_method_is_only_added(
    hold: Hold, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = hold("losses=[dpo]")
    ran: list[Job] = []
    run = workers.execute
    monkeypatch.setattr(workers, "execute", lambda job: (ran.append(job), run(job))[1])
    again = hold("losses=[dpo]")
    assert ran == []
    assert again["methods"] == first["methods"]
    assert again["verdicts"] == first["verdicts"]
    more = hold("losses=[dpo,ipo]")
    assert {job.method for job in ran} == {"ipo"}
    by_name = {row["name"]: row for row in more["methods"]}
    assert by_name["dpo"]["figures"] == next(row for row in first["methods"] if row["name"] == "dpo")["figures"]


def test_settings_are_chosen_on_validation_prompts_only(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second strength looks best on validation prompts, so it is what is trained anew."""
    run = workers.execute

    def rigged(job: Job) -> JobResult:
        result = run(job)
        if job.split == "validation" and job.method == "dpo":
            result.figures["accuracy"] = job.setting["beta"]
        return result

    monkeypatch.setattr(workers, "execute", rigged)
    found = hold("losses=[dpo]", "budget.trials=3", "seeds=1")
    row = next(row for row in found["methods"] if row["name"] == "dpo")
    tried = [(trial["setting"]["beta"], trial["setting"]["learning_rate"]) for trial in row["trials"]]
    assert tried == [(0.1, 0.01), (0.3, 0.01), (0.3, pytest.approx(0.01 / 3))]  # the third is beside the better one
    assert row["chosen"] == {"beta": 0.3, "learning_rate": 0.01}
    assert row["edges"] == [
        "beta=0.3 was not tried beyond: a higher one is declared",
        "learning_rate=0.01 is the highest that was tried",
    ]
    assert any("what lies beyond was not tried" in warning for warning in found["warnings"])


def test_a_run_that_diverges_is_a_row_with_its_reason(hold: Hold, tmp_path: Path) -> None:
    found = hold("losses=[dpo,ipo]", "methods.wild.loss=dpo", "methods.wild.trainer.learning_rate=1e30")
    rows = {row["name"]: row for row in found["methods"]}
    assert rows["wild"]["point"] is None
    assert rows["wild"]["reason"].startswith("diverged: ")
    assert rows["dpo"]["point"] is not None
    assert "diverged" in (tmp_path / "out" / "report.html").read_text()


def test_a_failed_run_is_tried_again(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    run = workers.execute

    def unlucky(job: Job) -> JobResult:
        return failure(job, "failed", "the cat pulled the plug") if job.method == "ipo" else run(job)

    with monkeypatch.context() as patch:
        patch.setattr(workers, "execute", unlucky)
        rows = {row["name"]: row for row in hold("losses=[dpo,ipo]")["methods"]}
    assert rows["ipo"]["reason"] == "failed: the cat pulled the plug"
    rows = {row["name"]: row for row in hold("losses=[dpo,ipo]")["methods"]}
    assert rows["ipo"]["reason"] == ""


def test_a_dry_run_trains_a_few_steps_at_most(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["compare", *words, "losses=[dpo,ipo]", f"output_dir={tmp_path}", "--dry-run"]
    assert main([*given, "budget.trials=3"]) == 0
    said = capsys.readouterr().out
    assert "dpo beta=0.1, lr=0.01, seed 0, validation" in said
    assert "dpo, 1 more near its best, validation" in said
    assert "10 + 7 jobs, 0 of them done; 17 to do at about" in said
    assert main(given) == 0  # one setting each: nothing to try
    said = capsys.readouterr().out
    assert "validation" not in said
    assert "0 + 7 jobs, 0 of them done; 7 to do at about" in said
    assert not (tmp_path / "results.json").exists()


def test_jobs_can_be_run_one_by_one(
    hold: Hold, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a cluster does: list, run each, list again for the second round; then nothing is left to run."""
    given = ["compare", *words, "losses=[dpo]", "budget.trials=2", "seeds=1", f"output_dir={tmp_path / 'out'}"]
    for jobs in (5, 8):
        capsys.readouterr()
        assert main([*given, "--list"]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
        assert len(lines) == jobs
        for line in lines:
            if "to do" in line:
                assert main([*given, f"only={line.split()[0]}"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(workers, "execute", lambda job: pytest.fail(f"{job.label} was run again"))
        assert len(hold("losses=[dpo]", "budget.trials=2", "seeds=1")["methods"]) == 3
    assert main([*given, "only=nothing"]) == 2


def test_a_folder_is_held_by_one(
    hold: Hold, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked_folder(tmp_path / "out"):
        assert main(["compare", *words, "losses=[dpo]", f"output_dir={tmp_path / 'out'}"]) == 2
    assert "is in use by another run of this process" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["losses=[dqo]"], "unknown loss 'dqo'; did you mean 'dpo'?"),
        (["loses=[dpo]"], "no option 'loses'; did you mean 'losses'?"),
        (["losses=[dpo]", "budget.trial=3"], "no option 'budget.trial'; did you mean 'trials'?"),
        (["losses=[dpo]", "budget.trials=many"], "budget.trials=many"),
        (["losses=[dpo]", "trainer.learning_rte=1"], "no option 'trainer.learning_rte'"),
        (["losses=dpo,ipo"], "give lists in brackets"),
        (["losses=[dpo]", "loss=ipo"], "a comparison sets this itself"),
        (["losses=[dpo,dpo]"], "two rows have the name 'dpo'"),
        (["seeds=2"], "nothing to compare"),
        (["losses=[dpo]", "methods.dpo=3"], "methods.NAME.OPTION=VALUE"),
        (["losses=[dpo]", "methods.dpo.loss.bta=3"], "no option 'loss.bta'"),
        (["losses=[dpo]", "seeds=0"], "seeds=0 must be at least 1"),
        (["losses=[dpo]", "--dry"], "no option --dry"),
        (["losses=[dpo]", "budget.trials=0"], "budget.trials=0 must be at least 1"),
        (["losses=[dpo]", "data.eval_records=0"], "needs held-out records"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    given: Sequence[str], said: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {word.split("=")[0] for word in given}
    kept = [word for word in words if word.split("=")[0] not in names]
    assert main(["compare", *kept, *given, f"output_dir={tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.strip().splitlines()) == 1


def first_is_longer(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
    """A judge that likes length, and the first place."""
    return [1.0 if len(a) >= len(b) else 0.2 for a, b in zip(first, second, strict=True)]


def test_a_judge_that_compares(
    hold: Hold, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["losses=[dpo]", "seeds=1", "budget.trials=3", "judge=tests.compare.test_compare:first_is_longer"]
    found = hold(*given)
    rows = {row["name"]: row for row in found["methods"]}
    assert found["metric"] == "win_rate"
    assert rows["sft"]["point"] == 0.5  # against itself
    assert main(["compare", *words, *given, f"output_dir={tmp_path / 'out'}", "--list"]) == 0
    assert "to do" not in capsys.readouterr().out  # the list, too, chooses by the judge
    assert len(list((tmp_path / "out" / "judgements").iterdir())) > 0
    monkeypatch.setattr(judges, "function", lambda judge: pytest.fail("asked twice"))
    assert hold(*given)["methods"] == found["methods"]


def test_a_reward_model_as_judge(hold: Hold, model_folder: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForSequenceClassification

    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(model_folder, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    config.pad_token_id = tokenizer.eos_token_id
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    found = hold("losses=[dpo]", "seeds=1", f"judge={tmp_path / 'judge'}")
    assert found["metric"] == "judge"
    rows = {row["name"]: row for row in found["methods"]}
    assert rows["sft"]["figures"]["win_rate"] == 0.5
    assert 0 <= rows["dpo"]["figures"]["win_rate"] <= 1


def test_a_comparison_in_wandb_is_one_group(hold: Hold, tmp_path: Path) -> None:
    hold("losses=[dpo]", "seeds=1", "tracking=wandb", "tracking.mode=offline")
    runs = list((tmp_path / "out" / "wandb").glob("offline-run-*"))
    assert len(runs) == 4  # base, sft, dpo, and the summary


def test_texts_from_models_are_escaped(hold: Hold, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    run = workers.execute

    def rigged(job: Job) -> JobResult:
        result = run(job)
        for text in result.texts:
            text |= {"prompt": evil, "text": evil}
        return result

    monkeypatch.setattr(workers, "execute", rigged)
    hold("losses=[dpo]", "seeds=1")
    page = (tmp_path / "out" / "report.html").read_text()
    assert evil not in page
    assert "&lt;script&gt;" in page
    assert "<script" not in page


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("budget.trials", "seeds=N", "controls", "judge", "--dry-run", "only=KEY"))
    assert json.dumps(said)
