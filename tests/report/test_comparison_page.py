"""The page of results that were made up: tasks, costs, flags of the search, and what is said beside them."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from prefopt.compare.jobs import JobResult
from prefopt.compare.rounds import MethodRuns
from prefopt.compare.search import Setting
from prefopt.compare.spec import Method
from prefopt.losses.registry import load
from prefopt.report.comparison_page import compare_page
from tests.compare.outcomes import outcome

PROMPTS = np.random.default_rng(0).normal(0, 1, 120)
COST = {"train_seconds": 2.0, "measure_seconds": 1.0, "tokens": 100.0, "steps": 4.0, "peak_memory_mib": 50.0}
TIMED = {"job_seconds": 7.0, "reference_seconds": 0.5, "reference_texts": 30.0}
TRIED = [Setting({"beta": beta}, rate) for beta, rate in ((0.1, 1e-3), (0.3, 1e-3), (0.3, 3e-4), (0.3, 3e-3))]


def run(name: str, number: int, reward: float, kl: float, cost: dict[str, float], **figures: float) -> JobResult:
    rng = np.random.default_rng([number, *name.encode()])
    values = reward + PROMPTS + rng.normal(0, 0.3, len(PROMPTS))
    curve = [{"step": step, "ratios/chosen": -number * (step - 1), "ratios/rejected": 0.0} for step in (1.0, 2.0, 3.0)]
    return JobResult(
        key=f"{name}{number}", method=name, label=name, status="ok", cost=cost, curve=curve if name != "base" else [],
        figures={"true_reward": float(values.mean()), "kl": kl, **figures},
        arrays={"true_reward": values, "kl": np.full(len(values), kl)},
    )  # fmt: skip


def row(name: str, reward: float, cost: dict[str, float], **figures: float) -> MethodRuns:
    config: Any = SimpleNamespace(
        model=SimpleNamespace(path="m"), data=SimpleNamespace(path="d"), loss=load("dpo"), loss_name="dpo"
    )
    if name == "base":
        first, last = run(name, 0, reward, 0.0, cost), run(name, 1, reward, 0.0, cost, **figures)
        return MethodRuns(name=name, method=None, config=config, trials=[first], finals=[last])
    trials = [run(name, i, reward + 0.1 * i, 0.4 + i, cost) for i in range(len(TRIED))]
    finals = [run(name, i + 1, reward, 1.0, cost, **figures) for i in range(3)]
    return MethodRuns(
        name=name, method=Method(name=name, loss="dpo"), config=config, settings=TRIED, trials=trials,
        chosen=TRIED[1], finals=finals,
    )  # fmt: skip


def words(html: str, heading: str) -> str:
    """The text from a heading to the next one, without tags."""
    part = re.split(r"<h[23]>", html[html.index(f"<h2>{heading}</h2>" if "<h2>" + heading in html else heading) + 4 :])[
        0
    ]
    return " ".join(re.sub(r"<[^>]+>", " ", part).split())


TASK, EVIL_TASK = "task/arc/acc", "task/<b>odd</b>/acc"


@pytest.fixture(scope="module")
def page() -> str:
    """A comparison without tasks, by runs that did not measure all costs."""
    return compare_page(outcome(row("base", 0.0, COST), row("sft", 0.1, COST | TIMED), row("dpo", 1.0, COST)))


@pytest.fixture(scope="module")
def full_page() -> str:
    """A comparison with tasks and all costs; SFT reads no reference."""
    without_reference = COST | TIMED | {"reference_seconds": 0.0, "reference_texts": 0.0}
    rows = (
        row("base", 0.0, COST | {"job_seconds": 3.0}, **{TASK: 0.5, EVIL_TASK: 0.25}),
        row("sft", 0.1, without_reference, **{TASK: 0.5, EVIL_TASK: 0.25}),
        row("dpo", 1.0, COST | TIMED, **{TASK: 0.375, EVIL_TASK: 0.5}),
    )
    return compare_page(outcome(*rows))


def test_tasks_stand_on_the_page_with_their_change(full_page: str) -> None:
    said = words(full_page, "Tasks")
    assert "dpo 0.500 +0.250 0.375 −0.125" in said
    assert "base 0.250 0.500" in said  # no change against itself
    assert "arc/acc" in said
    assert "<b>odd" not in full_page
    assert "&lt;b&gt;odd" in full_page


def test_without_tasks_there_is_no_such_table(page: str) -> None:
    assert "<h2>Tasks</h2>" not in page


def test_the_cost_counts_the_reference_and_the_whole_run(full_page: str) -> None:
    """Four trials and three final runs each."""
    said = words(full_page, "Cost")
    assert "dpo 4 7 2.0 21 3.5 49 700 50" in said
    assert "sft 4 7 2.0 21 0.0 49 700 50" in said
    assert "base 0 2 2.0 6 – 6 200 50" in said
    assert "Here 210 texts were scored, in 3.5 s of reference passes." in said


def test_what_older_runs_did_not_measure_is_a_dash(page: str) -> None:
    said = words(page, "Cost")
    assert "dpo 4 7 2.0 21 – – 700 50" in said
    assert "sft 4 7 2.0 21 3.5 49 700 50" in said
    assert "texts were scored" not in said


def test_flags_of_the_search_stand_in_their_rows(page: str) -> None:
    """One of two strengths tried, and a rate between two others: a line below the setting, no sentence over all."""
    assert page.count("beta=0.3 was not tried beyond: a higher one is declared") == 2  # sft's and dpo's row
    assert "is the highest" not in page
    assert "A line below a setting marks where its search ended" in words(page, "Verdicts")
    assert not any(word in page for word in ("nan", "NaN", "<script"))


def test_the_page_says_that_joined_settings_were_picked_on_what_they_show(page: str) -> None:
    assert "picked as unbeaten on the very prompts that they are shown on" in " ".join(page.split())


def test_learning_is_drawn_for_every_seed(page: str) -> None:
    """Of the chosen side, which the seeds move by 2, 4 and 6 nats, the summary gives the mean."""
    assert "dpo: by step 3, chosen −4.00 nats, rejected 0.00 nats" in page
