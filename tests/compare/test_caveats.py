"""Caveats of made-up outcomes: controls, few trials and seeds, unequal models."""

from __future__ import annotations

import pytest

from prefopt.compare.caveats import foreseen
from prefopt.compare.spec import Budget, Comparison, Method
from tests.compare.outcomes import outcome, runs


def test_controls_that_come_out_wrong_are_said_first() -> None:
    """The second name is better than the first, and the wrong sign no worse: the comparison is not to be trusted."""
    common = [runs("base", 0.0), runs("sft", 0.0), runs("dpo", 1.0)]
    found = outcome(*common, runs("dpo_again", 3.0), runs("wrong_sign", 1.0, control=True), controls=True)
    assert [warning.split(":")[0] for warning in found.warnings[:2]] == ["CONTROL FAILED", "CONTROL FAILED"]
    right = outcome(*common, runs("dpo_again", 1.0), runs("wrong_sign", -1.0, control=True), controls=True)
    assert right.warnings == []


def test_what_weakens_a_result_is_said() -> None:
    near, far = runs("near", 1.0, kl=0.5), runs("far", 1.2, valid=0.7, kl=3.0)
    rows = [runs("base", 0.0), runs("sft", 0.0), near, far]
    said = "\n".join(outcome(*rows, trials=2).warnings)
    for words in ("2 trials per method", "unequal validity: 70% of far's texts", "unequal KL: near moved 0.50"):
        assert words in said


def test_models_that_did_not_move_have_no_unequal_kl() -> None:
    rows = [runs("base", 0.0), runs("sft", 0.0), runs("near", 1.0, kl=0.001), runs("far", 1.2, kl=0.01)]
    assert not any("unequal KL" in warning for warning in outcome(*rows).warnings)


def test_what_will_weaken_verdicts_is_foreseen() -> None:
    """Before anything runs: with ten test prompts there can be no verdict."""
    few = foreseen(Comparison(methods=(Method(name="a", loss="dpo"),), seeds=5), 10)
    assert few == [
        "10 different test prompts: too few for a verdict, which takes at least 50",
        "hold out 100 prompts or more (data.eval_records=N): half of them choose settings",
    ]
    assert foreseen(Comparison(methods=(Method(name="a", loss="dpo"),), seeds=5), 1000) == []


def test_a_control_that_did_not_run_is_no_confusion() -> None:
    common = [runs("base", -1.0), runs("sft", 0.0), runs("dpo", 1.0)]
    again = runs("dpo_again", 1.0, status="failed")
    found = outcome(*common, again, runs("wrong_sign", -1.0, control=True), controls=True)
    assert found.warnings[0].startswith("CONTROL FAILED: dpo under a second name did not run")
    assert not any("differ from itself" in warning for warning in found.warnings)


@pytest.mark.parametrize(("seeds", "said"), [(1, "1 seed: there are no verdicts"), (2, "2 seeds: few"), (4, "4 seeds")])
def test_few_seeds_are_said(seeds: int, said: str) -> None:
    rows = [runs("base", 0.0), runs("sft", 0.0, seeds=seeds), runs("a", 1.0, seeds=seeds)]
    comparison = Comparison(methods=(Method(name="a", loss="dpo"),), seeds=seeds)
    found = outcome(*rows, comparison=comparison)
    assert any(warning.startswith(said) for warning in found.warnings)
    assert seeds > 1 or {pair.verdict for pair in found.pairs} == {"cannot_tell"}


def test_where_the_bound_of_kl_did_not_apply_is_said() -> None:
    """It rejects trials alone: final runs past it stay, and a run without a KL is within no bound."""
    far, unmeasured = runs("far", 1.2, kl=30.0), runs("unmeasured", 1.0)
    said = outcome(runs("base", 0.0), runs("sft", 0.0), far).warnings
    assert "far: 3 of 3 final runs are past budget.max_kl=10 (KL 30)" in said
    assert not any("no KL was measured" in warning for warning in said)
    for one in (*unmeasured.trials, *unmeasured.finals):
        del one.figures["kl"]
    rows = [runs("base", 0.0), runs("sft", 0.0), unmeasured]
    assert "no KL was measured: budget.max_kl did not apply" in outcome(*rows).warnings
    unbounded = Comparison(methods=(Method(name="unmeasured", loss="dpo"),), budget=Budget(max_kl=None))
    assert not any("max_kl" in warning for warning in outcome(*rows, comparison=unbounded).warnings)
