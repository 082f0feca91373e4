"""Results of jobs that are committed are found again on another machine."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import committed  # noqa: E402
import world_suite  # noqa: E402

from prefopt.compare.jobs import Job, JobResult  # noqa: E402
from prefopt.compare.spec import MeasureConfig  # noqa: E402
from prefopt.config.compose import compose  # noqa: E402

ARRAYS = ("true_reward", "kl")


def job(*overrides: str, data: str = "one draw") -> Job:
    config = compose(["loss=dpo", "output_dir=.", *overrides])
    measure = MeasureConfig(prompts=4, samples_per_prompt=1, texts=0)
    return Job(method="DPO", label="DPO", config=config, fingerprints={"data": data}, measure=measure, split="test")


def result(of: Job, status: str = "ok") -> JobResult:
    arrays = {"true_reward": np.array([1 / 3, -2.5]), "kl": np.array([0.25, 0.5]), "length": np.array([3.0, 4.0])}
    curve = [{"step": 1.0, "reward": 0.5, "loss": 0.7}, {"step": 2.0, "loss": 0.6}]
    return JobResult(key=of.key, method="DPO", label="DPO", status=status, figures={"kl": 0.375}, arrays=arrays,
                     curve=curve, cost={"tokens": 12.0})  # type: ignore[arg-type]  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(committed, "FOLDER", tmp_path / "committed")
    return tmp_path / "committed" / "suite"


def test_another_machine_goes_on_from_what_was_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = job()
    committed.keep("suite", here, result(here), ARRAYS)
    there = job(data="the same draw, other rounding")
    committed.restore("suite", [there], tmp_path / "runs")
    monkeypatch.setattr(world_suite, "JOBS", tmp_path / "runs")
    (found,) = world_suite.run("suite", [there], workers=0, arrays=ARRAYS)  # nothing is trained
    assert found.kept
    assert found.figures == {"kl": 0.375}
    assert found.cost == {"tokens": 12.0}
    assert found.curve == [{"step": 1.0, "reward": 0.5}]
    assert set(found.arrays) == set(ARRAYS)
    np.testing.assert_allclose(found.arrays["true_reward"], [1 / 3, -2.5], rtol=1e-5)


def test_other_settings_are_another_recipe(tmp_path: Path) -> None:
    here = job()
    committed.keep("suite", here, result(here), ARRAYS)
    for other in (job("trainer.learning_rate=0.5"), job("seed=1"), dataclasses.replace(here, split="validation")):
        assert committed.recipe(other) != committed.recipe(here)
        committed.restore("suite", [other], tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_result_of_another_formula_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = job()
    committed.keep("suite", here, result(here), ARRAYS)
    monkeypatch.setattr(committed, "of_files", lambda files: "another")
    committed.restore("suite", [here], tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    committed.keep("suite", here, dataclasses.replace(result(here), figures={"kl": 2.0}), ARRAYS)
    committed.restore("suite", [here], tmp_path / "runs")
    assert (tmp_path / "runs" / here.key).exists()


def test_a_failed_job_is_not_kept_and_a_diverged_one_is(folder: Path) -> None:
    failed, diverged = job("seed=1"), job("seed=2")
    committed.keep("suite", failed, result(failed, "failed"), ARRAYS)
    committed.keep("suite", diverged, result(diverged, "diverged"), ARRAYS)
    assert [file.stem for file in folder.iterdir()] == [committed.recipe(diverged)]


def test_tables_say_on_what_machines_and_whether_the_data_agree() -> None:
    first, second = job("seed=1"), job("seed=2", data="the same draw, other rounding")
    for one in (first, second):
        committed.keep("suite", one, result(one), ARRAYS)
    found = committed.provenance("suite", [first, second, job("seed=3")])
    assert sum(found["processors"].values()) == 2
    assert found["draws_in_several_versions"] == 1
