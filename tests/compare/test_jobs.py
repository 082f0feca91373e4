"""A job's name says what its numbers depend on; its folder is whole or absent."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt import registry
from prefopt.cli.compose import compose
from prefopt.compare.execute import swapped
from prefopt.compare.jobs import Job, Result, digest_of_weights, failure, load, save, sweep_leftovers
from prefopt.compare.spec import MeasureConfig
from prefopt.compare.workers import Team, run_jobs
from prefopt.data.tokens import TokenRecord
from prefopt.errors import UserError
from prefopt.plugin import Data


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


def result_of(job: Job, **given: Any) -> Result:
    return Result(key=job.key, method=job.method, label=job.label, status="ok", **given)


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


def test_leftovers_of_killed_processes_go(job: Job, tmp_path: Path) -> None:
    (tmp_path / "tmp-x").mkdir()
    save(tmp_path, result_of(job))
    sweep_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [job.key]


def test_weights_have_a_digest(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    first = digest_of_weights(str(tmp_path))
    (tmp_path / "readme.txt").write_text("no matter")
    assert digest_of_weights(str(tmp_path)) == first
    (tmp_path / "model.safetensors").write_bytes(b"abd")
    assert digest_of_weights(str(tmp_path)) != first
    assert digest_of_weights("org/model") == "org/model"


def test_sides_are_swapped() -> None:
    one, other = np.array([1], dtype=np.int32), np.array([2, 3], dtype=np.int32)
    common = {"id": "a", "prompt": np.array([0], dtype=np.int32)}
    (pair,) = swapped([TokenRecord(kind=Data.PAIRS, completions=(one, other), scores=(1.0, 0.0), **common)])
    assert [c.tolist() for c in pair.completions] == [[2, 3], [1]]
    assert pair.scores == (0.0, 1.0)
    (single,) = swapped([TokenRecord(kind=Data.UNPAIRED, completions=(one,), desirable=True, **common)])
    assert single.desirable is False
    with pytest.raises(UserError, match="no preference to turn round"):
        swapped([TokenRecord(kind=Data.DEMONSTRATIONS, completions=(one,), **common)])


class Fatal(Job):
    """A job whose process is killed as soon as it has it."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if threading.current_thread() is threading.main_thread() and os.environ.get("OMP_NUM_THREADS") == "1":
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_a_failed_row_and_the_others_go_on(job: Job, tmp_path: Path) -> None:
    """The second job fails by itself (there is no such model), in a worker that took the killed one's place."""
    config = dataclasses.replace(job.config, model=dataclasses.replace(job.config.model, path="/nowhere"))
    fatal = Fatal(**{f.name: getattr(job, f.name) for f in dataclasses.fields(job)})
    orphan = dataclasses.replace(job, config=config)
    with Team(1) as team:
        team.threads = 1
        first, second = run_jobs([fatal, orphan], tmp_path, workers=team)
    assert (first.status, second.status) == ("failed", "failed")
    assert "killed (signal 9)" in first.reason
    assert "/nowhere" in second.reason
