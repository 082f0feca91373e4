"""A comparison from its options to the result files, on a tiny model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefopt.cli import main
from prefopt.cli.compare_options import parse
from prefopt.common.locks import locked_folder
from prefopt.compare.comparison import compare
from prefopt.compare.jobs import Job, JobResult, failure
from prefopt.compare.results import plain
from prefopt.compare.rounds import Rounds

Hold = Callable[..., dict[str, Any]]
MadeUp = Callable[..., list[Job]]


def test_a_comparison_leaves_what_other_tools_read(finished: Path) -> None:
    found = json.loads((finished / "results.json").read_text())
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
    assert "| dpo |" in (finished / "results.md").read_text()
    page = (finished / "report.html").read_text()
    assert "prefopt train loss=simpo" in page.replace("&#39;", "'")
    assert (finished / "jobs").is_dir()
    assert not list((finished / "jobs").glob("tmp-*"))


def test_every_method_is_fed_the_same_and_starts_the_same(hold: Hold, made_up: MadeUp) -> None:
    """The records, their order (the seed), the first weights and the steps are those of every other method."""
    seen = made_up()
    hold("losses=[dpo,orpo]", "budget.trials=2", "seeds=1")
    trained = [job for job in seen if job.trained]
    assert len({tuple(job.fingerprints.items()) for job in trained}) == 1
    assert {job.config.seed for job in trained if job.split == "validation"} == {0}
    assert {job.config.seed for job in trained if job.split == "test"} == {1}
    assert len({str(job.config.batch) + str(job.config.model) for job in trained}) == 1
    assert {job.config.trainer["max_steps"] for job in trained} == {2}


def test_a_second_call_runs_nothing_and_another_method_is_only_added(
    hold: Hold, finished: Path, ran: list[tuple[Job, JobResult]]
) -> None:
    given = ("losses=[dpo,simpo]", "controls=true")
    first = json.loads((finished / "results.json").read_text())
    again = hold(*given, keep=finished)
    assert ran == []
    assert again["methods"] == first["methods"]
    assert again["verdicts"] == first["verdicts"]
    more = hold("losses=[dpo,ipo]")
    assert {job.method for job, _ in ran} == {"ipo"}
    by_name = {row["name"]: row for row in more["methods"]}
    assert by_name["dpo"]["figures"] == next(row for row in first["methods"] if row["name"] == "dpo")["figures"]


def test_settings_are_chosen_on_validation_prompts_only(hold: Hold, made_up: MadeUp) -> None:
    """The second strength looks best on validation prompts, so it is what is trained again."""

    def prefer_strong(job: Job, result: JobResult) -> None:
        if job.split == "validation" and job.method == "dpo":
            result.figures["accuracy"] = job.setting["beta"]

    made_up(prefer_strong)
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


@pytest.mark.slow
def test_a_run_that_diverges_is_a_row_with_its_reason(
    hold: Hold, finished: Path, tmp_path: Path, ran: list[tuple[Job, JobResult]]
) -> None:
    found = hold(
        "losses=[dpo,simpo]", "methods.wild.loss=dpo", "methods.wild.trainer.learning_rate=1e30", keep=finished
    )
    rows = {row["name"]: row for row in found["methods"]}
    assert rows["wild"]["point"] is None
    assert rows["wild"]["reason"].startswith("diverged: ")
    assert rows["dpo"]["point"] is not None
    assert "diverged" in (tmp_path / "out" / "report.html").read_text()
    assert [job.method for job, _ in ran] == ["wild", "wild"]
    for _, result in ran:  # it says what it took all the same
        assert result.cost["job_seconds"] >= result.cost["train_seconds"] > 0


@pytest.mark.slow
def test_a_failed_run_is_tried_again(hold: Hold, made_up: MadeUp) -> None:
    def unlucky(job: Job, result: JobResult) -> JobResult | None:
        return failure(job, "failed", "the cat pulled the plug") if job.method == "ipo" else None

    made_up(unlucky)
    rows = {row["name"]: row for row in hold("losses=[dpo,ipo]")["methods"]}
    assert rows["ipo"]["reason"] == "failed: the cat pulled the plug"
    jobs = made_up()
    rows = {row["name"]: row for row in hold("losses=[dpo,ipo]")["methods"]}
    assert rows["ipo"]["reason"] == ""
    assert {job.method for job in jobs} == {"ipo"}


def test_a_folder_is_locked_for_one(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked_folder(tmp_path / "out"):
        assert main(["compare", *words, "losses=[dpo]", f"output_dir={tmp_path / 'out'}"]) == 2
    assert "is in use by another run of this process" in capsys.readouterr().err


def test_texts_from_models_are_escaped(hold: Hold, made_up: MadeUp, tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"

    def attack(job: Job, result: JobResult) -> None:
        for text in result.texts:
            text |= {"prompt": evil, "text": evil}

    made_up(attack)
    hold("losses=[dpo]", "seeds=1")
    page = (tmp_path / "out" / "report.html").read_text()
    assert evil not in page
    assert "&lt;script&gt;" in page
    assert "<script" not in page


# `prefopt compare`, killed as soon as two results are saved
KILLED = """
import os, signal, sys
from prefopt.cli import main
from prefopt.cli.compare_options import parse
from prefopt.compare import workers

save, saved = workers.save, []

def save_two(folder, result):
    save(folder, result)
    saved.append(result)
    if len(saved) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

workers.save = save_two
sys.exit(main(sys.argv[1:]))
"""


def figures(content: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on how the jobs were run."""
    rows = {
        row["name"]: {name: row[name] for name in ("point", "interval", "chosen", "figures", "by_seed")}
        for row in content["methods"]
    }
    return {"rows": rows, "verdicts": content["verdicts"], "metric": content["metric"]}


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again(hold: Hold, finished: Path, words: list[str], tmp_path: Path) -> None:
    """Killed with -9 after two jobs, on worker processes; then finished here: bit for bit what one go gives."""
    whole = hold("losses=[dpo]", folder=tmp_path / "whole", keep=finished)
    folder = tmp_path / "killed"
    given = [word for word in words if not word.startswith("workers=")]
    command = [sys.executable, "-c", KILLED, "compare", *given, "losses=[dpo]", "workers=2", f"output_dir={folder}"]
    killed = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(folder.glob("jobs/*/result.json"))) == 2
    assert not (folder / "results.json").exists()
    assert figures(hold("losses=[dpo]", folder=folder)) == figures(whole)


def test_a_search_that_is_cut_short_takes_the_same_way_again(made_up: MadeUp, words: list[str], tmp_path: Path) -> None:
    """Cut short in the trials or in the final runs; each further trial depends on results from before."""
    kept = [word for word in words if not word.startswith(("budget.", "workers="))]
    _, comparison = parse([*kept, "losses=[dpo]", "budget.trials=3"])
    rounds = Rounds(comparison)
    made_up()
    whole = figures(plain(compare(rounds, tmp_path / "whole", workers=0)))
    for jobs in (3, 6, 9):
        left = iter(range(jobs))

        def interrupt(job: Job, result: JobResult, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt

        made_up(interrupt)
        with pytest.raises(KeyboardInterrupt):
            compare(rounds, tmp_path / str(jobs), workers=0)
        assert not (tmp_path / str(jobs) / "results.json").exists()
        run = made_up()
        assert figures(plain(compare(rounds, tmp_path / str(jobs), workers=0))) == whole
        assert len(run) == 1 + 2 * 3 + 1 + 2 * 2 - jobs
