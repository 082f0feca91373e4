"""The outcome of a comparison in words: the finding and `results.md`."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import prefopt
from prefopt.compare.results import plain
from prefopt.compare.spec import Comparison, Method
from prefopt.report.compare_text import finding, markdown
from tests.compare.outcomes import outcome, runs


def test_the_finding_names_who_is_better_and_who_cannot_be_told() -> None:
    found = outcome(runs("base", -0.5), runs("sft", 0.0), runs("good", 1.0), runs("as_good", 1.0), runs("poor", 0.4))
    best, other = (s.name for s in found.competitors[:2])
    assert {best, other} == {"good", "as_good"}
    said = " ".join(finding(found))
    assert said.startswith(f"{best} has the best true reward; it is better than poor, and cannot be told from {other}.")
    assert "All are better than SFT on the chosen side." in said
    assert "All are better than the model before training." in said
    assert found.warnings == []


def test_sft_alone_is_a_finding() -> None:
    comparison = Comparison(methods=(Method(name="sft", loss="sft"),))
    alone = outcome(runs("base", 0.0), runs("sft", 1.0), comparison=comparison)
    assert finding(alone) == ["SFT is the only method.", "It is better than the model before training."]
    failed = outcome(runs("base", 0.0), runs("sft", 1.0), runs("a", 1.0, status="diverged"))
    assert finding(failed)[0].startswith("No method but SFT could be measured")
    assert finding(outcome(runs("base", 0.0), runs("sft", 1.0, status="failed")))[0].startswith("No method could be")


def test_rows_are_set_against_each_other_by_what_their_losses_compare() -> None:
    rows = [runs("base", 0.0), runs("sft", 0.0), runs("a", 1.0), runs("b", 0.5), runs("c", 0.25)]
    for place, loss in ((3, "kto"), (4, "ipo")):
        rows[place] = dataclasses.replace(rows[place], method=Method(name=rows[place].name, loss=loss))
    found = outcome(*rows)
    assert {kind: [s.name for s in group] for kind, group in found.by_ranking.items()} == {
        "pairwise": ["a", "c"],
        "pointwise": ["b"],
    }
    said = markdown(found)
    assert "| pairwise | 2 | a |" in said
    assert "| pointwise | 1 | b |" in said
    assert {row["name"]: row["ranking"] for row in plain(found)["methods"]} == {
        "base": "", "sft": "pairwise", "a": "pairwise", "b": "pointwise", "c": "pairwise",
    }  # fmt: skip
    assert "| losses that are |" not in markdown(outcome(*rows[:3]))


def test_tasks_are_listed_with_their_change() -> None:
    rows = [runs("base", 0.0), runs("sft", 0.0), runs("a", 1.0)]
    for one, value in zip(rows, (0.25, 0.5, 0.125), strict=True):
        for final in one.finals:
            final.figures["task/arc/acc"] = value
    said = markdown(outcome(*rows))
    assert "| tasks (change against base) | arc/acc |" in said
    assert "| a | 0.125 (−0.125) |" in said
    assert "| base | 0.250 |" in said
    assert "arc" not in markdown(outcome(runs("base", 0.0), runs("sft", 0.0), runs("a", 1.0)))


def test_a_figure_that_rounds_to_zero_has_no_sign_and_only_differences_have_a_plus() -> None:
    shown = markdown(outcome(runs("base", 0.0), runs("sft", 1.0), runs("a", 0.5)))
    assert not re.search(r"[-−]0\.0+(?![0-9])", shown)
    assert re.search(r"^\| sft \| 1\.0", shown, re.MULTILINE), "a reward is no difference"
    assert re.search(r"^\| sft \| base \| \+1\.\d+ \[\+", shown, re.MULTILINE)


def test_every_signed_format_of_the_package_writes_zero_without_a_sign() -> None:
    """`z` of a format specification turns "-0.00" into "0.00"; `prefopt.report.formatting` does it for pages."""
    package = Path(prefopt.__file__).parent
    signed = re.compile(r":\+,?\.\d")
    wrong = [file.name for file in package.rglob("*.py") if signed.search(file.read_text(encoding="utf-8"))]
    assert wrong == []
