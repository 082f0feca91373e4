"""Verdicts of judges: each code is read as its documentation says, or refused; none is guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.data import DataConfig, ReadResult, read
from prefopt.data.account import account
from prefopt.errors import UserError


def judged(tmp_path: Path, *rows: dict[str, Any], **settings: Any) -> ReadResult:
    base = {"prompt": "q", "response_a": "first", "response_b": "second"}
    path = tmp_path / "judged.jsonl"
    path.write_text("".join(json.dumps({**base, "prompt": f"q{i}", **row}) + "\n" for i, row in enumerate(rows)))
    return read(DataConfig(path=str(path), **settings))


@pytest.mark.parametrize("column", ["label", "winner", "preference", "verdict", "judge_1", "preferred", "votes"])
@pytest.mark.parametrize("code", [0, 1, 2, "1", 1.0, [1, 2], 1.5, -1, 1.3, -3, "2"])
def test_a_number_whose_meaning_nothing_fixes_is_refused(tmp_path: Path, column: str, code: Any) -> None:
    with pytest.raises(UserError, match=r"data\.verdicts=\{") as caught:
        judged(tmp_path, {column: code})
    assert "'data.fields={preference_strength" in str(caught.value) or "0: first, 1: second" in str(caught.value)


@pytest.mark.parametrize("column", ["label", "winner", "better_response_id", "annotator1", "preference_strength"])
def test_the_option_gives_codes_their_meaning(tmp_path: Path, column: str) -> None:
    rows = [{column: code} for code in (0, 1, 2, "0", 1.0)]
    found = judged(tmp_path, *rows, verdicts={0: "first", 1: "second", "2": "tie"})
    assert [r.completions[0] for r in found.records] == ["first", "second", "first", "first", "second"]
    assert [r.scores for r in found.records] == [(1, 0), (1, 0), (0.5, 0.5), (1, 0), (1, 0)]
    (line,) = account(found.counts)
    assert line.startswith("verdicts: first better 2, second better 2, tie 1 (")


@pytest.mark.parametrize(
    ("code", "chosen"),
    [("A", "first"), ("[[A]]", "first"), ("A>B", "first"), ("A>>B", "first"), ("[[B>>A]]", "second"), ("B", "second"),
     ("response_b", "second"), ("A<B", "second"), ("model b", "second"), ("[[B]]", "second"), ("A = B", None),
     ("[[C]]", None), ("[[A=B]]", None), ("tie (bothbad)", None)],
)  # fmt: skip
def test_words(tmp_path: Path, code: str, chosen: str | None) -> None:
    (record,) = judged(tmp_path, {"winner": code}).records
    assert record.scores == ((0.5, 0.5) if chosen is None else (1, 0))
    assert record.completions[0] == (chosen or "first")


def test_what_was_understood_is_said(tmp_path: Path) -> None:
    found = judged(tmp_path, {"winner": "A"}, {"winner": "A"}, {"winner": "tie"}, {"winner": "B"})
    assert account(found.counts) == [
        "verdicts: first better 2, second better 1, tie 1 "
        "(winner='A' is first better: 2; winner='B' is second better: 1; winner='tie' is a tie: 1)"
    ]


def test_a_name_of_a_column_is_its_side(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = {"prompt": "q", "response_0": "first", "response_1": "second", "winner": "response_1"}
    path.write_text(json.dumps(row))
    (record,) = read(DataConfig(path=str(path))).records
    assert record.completions == ("second", "first")


@pytest.mark.parametrize("columns", [("response_A", "response_B"), ("response 1", "response 2"), ("answer1", "answer2"),
                                     ("Output-A", "Output-B"), ("completion0", "completion1")])  # fmt: skip
def test_spellings_of_columns(tmp_path: Path, columns: tuple[str, str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "q", columns[0]: "first", columns[1]: "second", "winner": "B"}))
    (record,) = read(DataConfig(path=str(path))).records
    assert record.completions == ("second", "first")


def test_three_answers_are_refused(tmp_path: Path) -> None:
    found = {"prompt": "q", "response_0": "a", "response_1": "b", "response_2": "c", "winner": "A"}
    (tmp_path / "a.jsonl").write_text(json.dumps(found))
    with pytest.raises(UserError, match="the row has 3 answers"):
        read(DataConfig(path=str(tmp_path / "a.jsonl")))


@pytest.mark.parametrize(
    ("preference", "scores"), [(1.0, (1, 0)), (1.25, (0.75, 0.25)), (2, (1, 0)), (1.5, (0.5, 0.5))]
)
def test_preference_of_alpaca_eval(tmp_path: Path, preference: float, scores: tuple[float, float]) -> None:
    path = tmp_path / "a.jsonl"
    row = {"instruction": "q", "output_1": "first", "output_2": "second", "preference": preference}
    path.write_text(json.dumps(row))
    (record,) = read(DataConfig(path=str(path))).records
    assert (record.scores, record.completions[0]) == (scores, "second" if preference == 2 else "first")


def test_an_index_that_counts_from_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'choice' is 2"):
        judged(tmp_path, {"choice": 1}, {"choice": 2})


def test_a_meaning_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'good'; give each code first, second or tie"):
        judged(tmp_path, {"label": 1}, verdicts={1: "good"})
