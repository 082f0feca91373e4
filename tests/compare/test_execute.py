"""What a job costs: the steps, the reference pass before them, and the whole from loading to measuring."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.compare import execute
from prefopt.compare.execute import swapped
from prefopt.compare.jobs import Job, JobResult
from prefopt.compare.spec import MeasureConfig
from prefopt.config.compose import compose
from prefopt.data.tokens import TokenRecord
from prefopt.errors import UserError
from prefopt.plugin import Data

Hold = Callable[..., dict[str, Any]]


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
    assert first["reference_texts"] == 2 * 16  # both sides of the records that its steps read
    assert second["reference_texts"] == 0
    assert first["reference_seconds"] > 0
    assert second["reference_seconds"] > 0  # looking them up takes a little
    assert "reference_seconds" not in costs(ran, "base")[0]
    assert first["figures_texts"] == second["figures_texts"] == 0
    others = [*costs(ran, "sft"), *costs(ran, "orpo")]  # have curves of log-ratios: a pass that is no cost of theirs
    assert sum(cost["figures_texts"] for cost in others) == 2 * 16
    assert all(cost["figures_seconds"] > 0 for cost in others)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Here 32 texts were scored" in page
    assert "of methods without a reference, 32 were scored" in page
    assert "orpo: by step" in page
    for _, result in ran:  # every method's log-ratios, that of the model before training being 0
        steps = [point["ratios/chosen"] for point in result.curve]
        assert len(steps) == (2 if result.method != "base" else 0)
        assert all(abs(first) < 1e-4 for first in steps[:1])


def test_a_pass_for_curves_alone_takes_no_processor_of_the_method(
    hold: Hold, ran: list[tuple[Job, JobResult]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if every pass had taken an hour: that of DPO, which reads a reference, is its own."""

    def slow(*args: Any, **given: Any) -> Any:
        return dataclasses.replace(train(*args, **given), reference_processor_seconds=3600.0)

    train = execute.train
    monkeypatch.setattr(execute, "train", slow)
    hold("losses=[orpo,dpo]", f"reference_folder={tmp_path / 'reference'}")
    assert all(cost["processor_seconds"] < 0 for cost in costs(ran, "orpo"))
    assert all(cost["processor_seconds"] > 0 for cost in costs(ran, "dpo"))


def test_sides_are_swapped() -> None:
    one, other = np.array([1], dtype=np.int32), np.array([2, 3], dtype=np.int32)
    common = {"id": "a", "prompt": np.array([0], dtype=np.int32)}
    (pair,) = swapped([TokenRecord(kind=Data.PAIRS, completions=(one, other), scores=(1.0, 0.0), **common)])
    assert [c.tolist() for c in pair.completions] == [[2, 3], [1]]
    assert pair.scores == (0.0, 1.0)
    (single,) = swapped([TokenRecord(kind=Data.UNPAIRED, completions=(one,), desirable=True, **common)])
    assert single.desirable is False
    with pytest.raises(UserError, match="no preference to reverse"):
        swapped([TokenRecord(kind=Data.DEMONSTRATIONS, completions=(one,), **common)])


def test_worlds_have_no_judge() -> None:
    """The reward of a world is exact: a judge beside it is refused, job by job."""
    job = Job(
        method="base", label="base", config=compose(["loss=dpo", "output_dir=."]), fingerprints={}, split="test",
        measure=MeasureConfig(judge="m:f"), trained=False,
    )  # fmt: skip
    with pytest.raises(UserError, match="for real data"):
        execute._measure_in_world(job, None)
