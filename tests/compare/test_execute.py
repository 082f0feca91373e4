"""What a job says of its cost: the steps, the reference pass before them, and the whole from loading to measuring."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prefopt.compare import workers
from prefopt.compare.jobs import Job, JobResult
from prefopt.compare.progress_display import ProgressDisplay

Hold = Callable[..., dict[str, Any]]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Job, JobResult]]:
    """Every job that is run, with its result."""
    seen: list[tuple[Job, JobResult]] = []
    run = workers.execute

    def watched(job: Job) -> JobResult:
        seen.append((job, run(job)))
        return seen[-1][1]

    monkeypatch.setattr(workers, "execute", watched)
    return seen


def costs(ran: Sequence[tuple[Job, JobResult]], method: str) -> list[dict[str, float]]:
    return [result.cost for job, result in ran if job.method == method]


def test_a_job_says_what_steps_reference_and_all_of_it_took(
    hold: Hold, ran: list[tuple[Job, JobResult]], tmp_path: Path
) -> None:
    """The first run that reads a reference computes it, the next finds it; a loss without one has no such pass."""
    hold("losses=[orpo,dpo]", f"reference_folder={tmp_path / 'reference'}")
    for _, result in ran:
        parts = ("train_seconds", "reference_seconds", "measure_seconds")
        assert result.cost["job_seconds"] > sum(result.cost.get(part, 0.0) for part in parts)
    assert [cost["reference_seconds"] for cost in costs(ran, "orpo")] == [0.0, 0.0]
    first, second = costs(ran, "dpo")
    assert first["reference_texts"] == 2 * 24  # both sides of the records that are trained on
    assert second["reference_texts"] == 0
    assert first["reference_seconds"] > 0
    assert second["reference_seconds"] > 0  # looking them up takes a little
    assert "reference_seconds" not in costs(ran, "base")[0]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Here 48 texts were scored" in page


def test_a_run_that_goes_wrong_says_what_it_took(hold: Hold, ran: list[tuple[Job, JobResult]]) -> None:
    hold("losses=[dpo]", "methods.wild.loss=dpo", "methods.wild.trainer.learning_rate=1e30", "seeds=1")
    (job,) = costs(ran, "wild")
    assert job["job_seconds"] >= job["train_seconds"] > 0


def test_the_time_left_counts_whole_jobs() -> None:
    out = io.StringIO()
    display = ProgressDisplay(Console(file=out, width=100), (0, 3), 1)
    display.started -= 1000
    cost = {"train_seconds": 1.0, "measure_seconds": 1.0, "job_seconds": 60.0}
    display.job(
        Job(method="dpo", label="dpo", config=None, fingerprints={}, measure=None, split="test"),  # type: ignore[arg-type]
        JobResult(key="k", method="dpo", label="dpo", status="ok", cost=cost),
    )
    assert "(2 min left)" in out.getvalue()
