"""A small comparison that a user could run: a tiny model, forty pairs, two methods."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.cli import compare_jobs, main
from prefopt.compare import workers
from prefopt.compare.frontier import at_matched_kl
from prefopt.compare.jobs import Job, JobResult
from prefopt.report import comparison_page
from tests.cli.conftest import model_folder, pairs_file, sketched

__all__ = ["model_folder", "pairs_file", "sketched"]

Hold = Callable[..., dict[str, Any]]
PROMPTS = 8  # of each half of the held-out pairs


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each method's frontier, which tests/compare/test_frontier.py tests."""
    monkeypatch.setattr(comparison_page, "at_matched_kl", partial(at_matched_kl, resamples=50))


@pytest.fixture(scope="session")
def words(model_folder: Path, pairs_file: Path) -> list[str]:
    """What makes a comparison on the tiny model take seconds."""
    return [
        "model=local", f"model.path={model_folder}", "data=auto", f"data.path={pairs_file}", "data.eval_records=16",
        "batch.records=8", "trainer.max_steps=2", "trainer.learning_rate=1e-2", "trainer.warmup_steps=0",
        "evaluation.max_new_tokens=4", "evaluation.kl_prompts=6", "budget.trials=1", "seeds=2", "workers=0",
        "trainer.logging_steps=1",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def finished(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison of DPO and SimPO with controls, whose jobs others keep."""
    folder = tmp_path_factory.mktemp("finished")
    assert main(["compare", *words, "losses=[dpo,simpo]", "controls=true", f"output_dir={folder}"]) == 0
    return folder


@pytest.fixture
def hold(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hold:
    """`prefopt compare` in this process; gives its `results.json`. Jobs in the folder `keep` are not run again."""
    monkeypatch.chdir(tmp_path)

    def run(*given: str, folder: Path = tmp_path / "out", keep: Path | None = None) -> dict[str, Any]:
        if keep is not None and not folder.exists():
            shutil.copytree(keep / "jobs", folder / "jobs")
        names = {word.split("=")[0] for word in given}
        kept = [word for word in words if word.split("=")[0] not in names]
        assert main(["compare", *kept, *given, f"output_dir={folder}"]) == 0
        content: dict[str, Any] = json.loads((folder / "results.json").read_text())
        return content

    return run


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Job, JobResult]]:
    """Every job that is run, with its result; those kept from before are not here."""
    seen: list[tuple[Job, JobResult]] = []
    run = workers.execute

    def recorded(job: Job) -> JobResult:
        seen.append((job, run(job)))
        return seen[-1][1]

    monkeypatch.setattr(workers, "execute", recorded)
    return seen


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Job]]:
    """Give every job a made-up result instead of training, changed by a function; returns the jobs as they are run."""

    def use(change: Callable[[Job, JobResult], JobResult | None] = lambda job, result: None) -> list[Job]:
        jobs: list[Job] = []

        def execute(job: Job) -> JobResult:
            jobs.append(job)
            result = made_up_result(job)
            return change(job, result) or result

        monkeypatch.setattr(workers, "execute", execute)
        monkeypatch.setattr(compare_jobs, "execute", execute)
        return jobs

    return use


def made_up_result(job: Job) -> JobResult:
    """A result that depends on the job's key alone."""
    rng = np.random.default_rng(int(job.key, 16))
    arrays = {"accuracy": rng.random(PROMPTS), "kl": rng.random(PROMPTS)}
    texts = [{"prompt": f"Is {i} even?", "text": "yes" * int(rng.integers(1, 5))} for i in range(PROMPTS)]
    return JobResult(
        key=job.key, method=job.method, label=job.label, status="ok", setting=job.setting, arrays=arrays, texts=texts,
        figures={name: float(values.mean()) for name, values in arrays.items()},
        cost={"train_seconds": 1.0, "measure_seconds": 1.0, "tokens": 10.0, "steps": 2.0, "peak_memory_mib": 1.0},
    )  # fmt: skip
