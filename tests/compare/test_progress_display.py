"""The progress of a comparison on a console."""

from __future__ import annotations

import io

from rich.console import Console

from prefopt.compare.jobs import Job, JobResult
from prefopt.compare.progress_display import ProgressDisplay


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
