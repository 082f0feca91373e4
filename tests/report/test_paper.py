"""What a paper takes from a comparison: numbers as they are, LaTeX that compiles, figures, and how they were made."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from prefopt.report.paper import write_paper
from tests.compare.outcomes import outcome
from tests.report.test_comparison_page import COST, TIMED, row


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = {"task/100%_of & $x$/acc": 0.5}
    rows = (row("base", 0.0, COST), row("sft", 0.1, COST | TIMED), row("dpo", 1.0, COST | TIMED, **names))
    return write_paper(tmp_path_factory.mktemp("comparison"), outcome(*rows))


def test_the_csv_has_every_number_as_it_is(folder: Path) -> None:
    with (folder / "results.csv").open(newline="") as file:
        rows = {line["method"]: line for line in csv.DictReader(file)}
    assert list(rows) == ["dpo", "sft", "base"]
    assert float(rows["dpo"]["value"]) == float(rows["dpo"]["true_reward"])
    assert float(rows["dpo"]["low"]) < float(rows["dpo"]["value"]) < float(rows["dpo"]["high"])
    assert rows["dpo"]["task/100%_of & $x$/acc"] == "0.5"
    assert float(rows["dpo"]["cost_tokens"]) == 700
    assert rows["base"]["value"]
    assert not rows["base"]["loss"]


def test_the_latex_is_a_booktabs_table(folder: Path) -> None:
    text = (folder / "results.tex").read_text()
    assert text.startswith("% \\usepackage{booktabs}\n% Each method was tuned over 4 settings")
    for word in ("\\toprule", "\\midrule", "\\bottomrule", "95 \\% interval", "best by number"):
        assert word in text
    rows = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert [line.count(" & ") for line in rows] == [5] * 4  # a head and three rows of six cells
    assert "_" not in "".join(rows).replace("\\_", "")


def test_figures_are_files_that_others_open(folder: Path) -> None:
    for name in ("final_models", "tried_settings"):
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_how_says_what_was_done(folder: Path) -> None:
    text = (folder / "how.txt").read_text()
    assert "its best was trained with 3 seeds and measured on 120 test prompts" in text
    assert "Holm's correction over 3 pairs" in text
