"""Figures of held-out records on any data, and of tasks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.cli import main
from prefopt.compare.jobs import Job, JobResult
from prefopt.compare.measure_texts import _pairs
from prefopt.evaluate.held_out import HeldOut
from prefopt.evaluate.tasks import check_tasks
from tests.evaluate.test_tasks import task

Hold = Callable[..., dict[str, Any]]


def held_out(chosen: list[float], rejected: list[float]) -> HeldOut:
    """Records of 2 and 4 tokens; the first and the last have one prompt."""
    return HeldOut(
        ids=list("123"), prompts=list("aba"), sums={"chosen": np.array(chosen), "rejected": np.array(rejected)},
        tokens={"chosen": np.full(3, 2.0), "rejected": np.full(3, 4.0)},
    )  # fmt: skip


def test_records_of_one_prompt_are_averaged() -> None:
    found = _pairs(held_out([-1.0, -2.0, -4.0], [-3.0, -2.0, -3.0]), held_out([-2.0, -2.0, -2.0], [-2.0, -2.0, -2.0]))
    assert {name: values.tolist() for name, values in found.items()} == {
        "chosen_logp": [-2.5, -2.0],
        "chosen_change": [-0.5, 0.0],
        "rejected_change": [-1.0, 0.0],
        "accuracy": [0.5, 0.5],  # won and lost; a tie
        "ties": [0.0, 1.0],
        "accuracy_sum": [0.5, 0.5],
        "accuracy_mean": [0.5, 0.0],  # -.5 to -.75, -2 to -.75; -1 to -.5
        "margin": [0.5, 0.0],
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the harness's own
def test_a_task_with_other_data_is_run_again(hold: Hold, ran: list[tuple[Job, JobResult]], tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    found = []
    for answer in (0, 1, 1):
        rows = hold("losses=[dpo]", "seeds=1", f"tasks=['{task(tmp_path, answer)}']")["methods"]
        found.append({row["name"]: row["figures"]["task/even/acc"] for row in rows})
    assert all(0 <= value <= 1 for accuracies in found for value in accuracies.values())
    assert [len(ran), found[1]] == [6, found[2]]
    assert all(found[0][name] == pytest.approx(1 - found[1][name]) for name in found[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the harness's own
def test_tasks_are_refused_before_any_job(
    words: list[str], ran: list[tuple[Job, JobResult]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "none.yaml").write_text("output_type: multiple_choice\n")
    for name, said in (
        ("hellaswga", "no task 'hellaswga'; did you mean 'hellaswag'?"),
        (f"{tmp_path}/nowhere.yaml", "cannot read"),
        (f"{tmp_path}/list.yaml", "it has no `task: NAME`"),
        (f"{tmp_path}/none.yaml", "it has no `task: NAME`"),
    ):
        assert main(["compare", *words, "losses=[dpo]", f"tasks=['{name}']", f"output_dir={tmp_path / 'out'}"]) == 2
        assert said in capsys.readouterr().err
    assert ran == []
    check_tasks([task(tmp_path, 0)])
