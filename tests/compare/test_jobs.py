"""A job's name says what its numbers depend on; its folder is whole or absent."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from prefopt.common.files import remove_leftovers
from prefopt.compare import jobs
from prefopt.compare.jobs import Job, JobResult, code_of, failure, load, save
from prefopt.compare.spec import MeasureConfig
from prefopt.config.compose import compose
from prefopt.losses import registry


@pytest.fixture(scope="module")
def job() -> Job:
    return Job(
        method="dpo", label="dpo, one run", config=compose(["loss=dpo", "output_dir=here"]), measure=MeasureConfig(),
        fingerprints={"data": "d", "weights": "w"}, split="test",
    )  # fmt: skip


def test_a_name_for_what_matters(job: Job) -> None:
    config = job.config
    same = [
        dataclasses.replace(job, config=dataclasses.replace(config, output_dir=Path("elsewhere"))),
        dataclasses.replace(job, config=dataclasses.replace(config, resume="never")),
        dataclasses.replace(job, label="another", method="another"),
    ]
    assert {one.key for one in same} == {job.key}
    other = [
        dataclasses.replace(job, config=dataclasses.replace(config, seed=1)),
        dataclasses.replace(job, config=dataclasses.replace(config, loss=registry.load("dpo", beta=0.2))),
        dataclasses.replace(job, config=dataclasses.replace(config, trainer={**config.trainer, "max_steps": 5})),
        dataclasses.replace(job, fingerprints={"data": "other", "weights": "w"}),
        dataclasses.replace(job, measure=MeasureConfig(prompts=3)),
        dataclasses.replace(job, split="validation"),
        dataclasses.replace(job, sides_swapped=True),
        dataclasses.replace(job, trained=False),
    ]
    assert len({one.key for one in other} | {job.key}) == len(other) + 1


def test_a_model_before_training_is_one_for_all_methods(job: Job) -> None:
    base = dataclasses.replace(job, trained=False)
    simpo = dataclasses.replace(base, config=compose(["loss=simpo", "output_dir=."]))
    assert base.key == simpo.key


def result_of(job: Job, **given: Any) -> JobResult:
    return JobResult(key=job.key, method=job.method, label=job.label, status="ok", **given)


def test_results_come_back_whole(job: Job, tmp_path: Path) -> None:
    given = result_of(
        job, figures={"kl": 1.5}, arrays={"kl": np.array([1.0, 2.0])}, texts=[{"prompt": "p", "text": "t"}]
    )
    save(tmp_path, given)
    found = load(tmp_path, dataclasses.replace(job, label="another name"))
    assert found is not None
    assert found.kept
    assert (found.figures, found.texts, found.label) == ({"kl": 1.5}, given.texts, "another name")
    np.testing.assert_array_equal(found.arrays["kl"], [1.0, 2.0])
    assert [p.name for p in tmp_path.iterdir()] == [job.key]


def test_only_what_went_wrong_around_a_run_is_tried_again(job: Job, tmp_path: Path) -> None:
    save(tmp_path, failure(job, "failed", "out of memory"))
    assert load(tmp_path, job) is None
    save(tmp_path, failure(job, "diverged", "loss is nan"))
    found = load(tmp_path, job)
    assert found is not None
    assert (found.status, found.reason) == ("diverged", "loss is nan")


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": "another"}'])
def test_a_damaged_result_is_none(job: Job, tmp_path: Path, damage: str) -> None:
    save(tmp_path, result_of(job, arrays={"kl": np.ones(2)}))
    (tmp_path / job.key / "result.json").write_text(damage)
    assert load(tmp_path, job) is None


PLUGIN = """
from dataclasses import dataclass

from prefopt.losses import load_class

@dataclass(frozen=True, kw_only=True)
class Mine(load_class("dpo")):
    pass
"""


def test_the_code_of_a_loss_from_outside_matters(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file and its package's version; a built-in loss goes with prefopt's version, and has no such part."""
    file = tmp_path / "prefopt_mine.py"
    file.write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    import prefopt_mine  # type: ignore[import-not-found]

    monkeypatch.setitem(sys.modules, "prefopt_mine", prefopt_mine)
    config = dataclasses.replace(job.config, loss=prefopt_mine.Mine(), loss_name="mine")
    monkeypatch.setattr(registry, "_outside", lambda: {"mine": SimpleNamespace(dist=SimpleNamespace(name="numpy"))})
    first = dataclasses.replace(job, config=config)
    again, base = dataclasses.replace(first), dataclasses.replace(first, trained=False)
    assert first.key == again.key
    assert base.key == dataclasses.replace(job, trained=False).key  # no loss plays a part
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "version_of", lambda package: "99" if package == "numpy" else "1")
        newer = dataclasses.replace(first).key
        patch.setattr(jobs, "version_of", lambda package: "98" if package == "numpy" else "1")
        assert dataclasses.replace(first).key != newer
    file.write_text(PLUGIN + "# another formula\n")
    assert dataclasses.replace(first).key != first.key
    assert code_of(job.config.loss, "dpo") == {}


def test_what_is_being_saved_says_by_whom(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison that starts meanwhile sweeps, and the result comes whole all the same."""
    write = jobs.write_json
    monkeypatch.setattr(jobs, "write_json", lambda *given: (remove_leftovers(tmp_path), write(*given)))
    save(tmp_path, result_of(job))
    assert load(tmp_path, job) is not None
