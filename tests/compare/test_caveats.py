"""Caveats of made-up outcomes: controls, few trials and seeds, unequal models."""

from __future__ import annotations

import pytest

from prefopt.compare.spec import Comparison, Method
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
