"""The verdict on a made-up run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefopt.report.bands import State
from prefopt.report.run_facts import RunFacts
from prefopt.report.run_page import run_page
from prefopt.report.verdict import judge
from prefopt.runs.run_folder import RunFolder
from tests.report.html import EVIL, text
from tests.report.run_folders import run_folder, write


@pytest.mark.parametrize(
    ("margin", "state", "words"),
    [(1.0, State.GOOD, "It learnt the preference"), (0.0, State.LOOK, "It cannot be told from the base model"),
     (-1.0, State.BAD, "It learnt the opposite")],
)  # fmt: skip
def test_the_verdict_follows_the_paired_differences(tmp_path: Path, margin: float, state: State, words: str) -> None:
    verdict = judge(run_folder(tmp_path / "run", margin=margin))
    assert words in verdict.headline
    grew = next(f for f in verdict.findings if f.band.figure == "grew").figure
    assert grew.value == {1.0: 1.0, 0.0: 0.5, -1.0: 0.0}[margin]
    assert verdict.state in (state, State.LOOK if margin == 1.0 else state)  # all pairs grew: worth a look


def test_what_noise_may_hide_is_no_tie(tmp_path: Path) -> None:
    """0.05 ± 0.4 / sqrt(39) = 0.064: two standard errors reach from -0.08 to 0.18, beyond the 0.1 that matter."""
    assert "It cannot be told from the base model" in judge(run_folder(tmp_path / "run", margin=0.05)).headline
    assert "A tie with the base model" in judge(run_folder(tmp_path / "sure", margin=0.05, spread=0.1)).headline


def test_a_sure_change_that_is_too_small_to_matter_is_a_tie(tmp_path: Path) -> None:
    verdict = judge(run_folder(tmp_path / "run", margin=1e-3, spread=0))
    assert verdict.state is not State.GOOD
    assert "A tie with the base model" in verdict.headline
    assert "at least 0.1 matter" in verdict.headline


@pytest.mark.parametrize(
    ("change", "se", "words"),
    [(0.2, 0.01, "Better than the base model by the reward"), (-0.2, 0.01, "Worse than the base model by the reward"),
     (0.01, 0.01, "A tie with the base model by the reward"), (0.04, 0.01, "It cannot be told from the base model by"),
     (0.2, 0.2, "It cannot be told from the base model by the reward")],
)  # fmt: skip
def test_rewards_are_judged_in_deviations_over_prompts(tmp_path: Path, change: float, se: float, words: str) -> None:
    """Of 100 prompts with a standard error of 0.1 the deviation is 1, so that 0.05 matter."""
    level = {"value": 0.0, "se": 0.1, "count": 100}
    texts = {"reward_before": level, "reward": level, "reward_change": {"value": change, "se": se, "count": 100}}
    run = run_folder(tmp_path / "run", texts=texts)
    assert words in judge(run).headline
    assert RunFacts(run).least_reward == pytest.approx(0.05)


def test_a_figure_out_of_bounds_turns_a_good_verdict_bad(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    summary = json.loads((run.path / "summary.json").read_text())
    summary["after"] |= {"kl": 90.0, "kl_sem": 2.0}
    write(run.path / "summary.json", summary)
    verdict = judge(RunFolder(run.path))
    assert verdict.state is State.BAD
    assert "out of bounds" in verdict.headline
    assert any("90.00 ± 2.00 nats" in detail and "lower learning rate" in detail for detail in verdict.details)


def test_without_held_out_records_nothing_is_claimed(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", after={}, texts={})
    (run.path / "heldout.jsonl").unlink()
    verdict = judge(run)
    assert verdict.state is State.LOOK
    assert "data.eval_records=" in verdict.headline
    assert verdict.findings == []
    assert "No records were held out" in text(run_page(run))


def test_records_that_were_held_out_and_not_measured_are_not_denied(tmp_path: Path) -> None:
    for held_out, said in ((11, "Nothing could be measured on the 11 held-out records"), (0, "data.eval_records=9 or")):
        run = run_folder(tmp_path / str(held_out), after={}, texts={}, counts={"train": 48, "eval": held_out})
        (run.path / "heldout.jsonl").unlink()
        assert said in judge(run).headline


def test_what_the_sentinels_said_is_shown_and_counts(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", sentinels=[{"sentinel": "kl", "step": 40, "value": 9.0, "bound": 3.0,
                                                       "text": f"loss jumped {EVIL}"}])  # fmt: skip
    html = run_page(run)
    assert "Step 40: loss jumped" in html
    assert EVIL not in html
    assert judge(run).state is not State.GOOD
