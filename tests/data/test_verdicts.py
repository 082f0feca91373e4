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


@pytest.mark.parametrize("column", ["chosen_index", "best", "human_vote", "win", "is_a_better", "rank_a"])
def test_a_verdict_in_a_column_of_another_name_is_asked_for(tmp_path: Path, column: str) -> None:
    with pytest.raises(UserError, match=r"data\.fields=\{winner: COLUMN\}"):
        judged(tmp_path, {column: 0}, {column: 1})
    fields = {"winner": column}
    with pytest.raises(UserError, match=r"0: first, 1: second"):
        judged(tmp_path, {column: 0}, {column: 1}, fields=fields)
    found = judged(tmp_path, {column: 0}, {column: 1}, fields=fields, verdicts={0: "first", 1: "second"})
    assert [r.completions[0] for r in found.records] == ["first", "second"]


@pytest.mark.parametrize(("good", "bad"), [(True, False), ("True", "false"), ("1.0", "0.0"), (1, "0"), (1.0, 0)])
def test_spellings_of_one_code(tmp_path: Path, good: Any, bad: Any) -> None:
    codes = {True: "first", False: "second"} if str(good) == "True" else {1: "first", 0: "second"}
    found = judged(tmp_path, {"winner": good}, {"winner": bad}, verdicts=codes)
    assert [r.completions[0] for r in found.records] == ["first", "second"]


@pytest.mark.parametrize(
    "row",
    [{"winner": "A", "preference_strength": 2}, {"winner": "B", "choice": 0}, {"winner": "A", "preferred": "B"},
     {"preferred": "tie", "better_response_id": 1}, {"winner": "tie", "overall_preference": -1}],
)  # fmt: skip
def test_two_columns_that_contradict_each_other_are_refused(tmp_path: Path, row: dict[str, Any]) -> None:
    one, two = row
    with pytest.raises(UserError, match="choose which column decides") as caught:
        judged(tmp_path, row)
    for column, other in ((one, two), (two, one)):
        assert f"data.ignore=[{column}]" in str(caught.value)
        (line,) = account(judged(tmp_path, row, ignore=[column]).counts)
        assert f"({other}" in line


@pytest.mark.parametrize("column", ["votes", "annotations", "judge_1", "winner"])
def test_an_empty_list_of_votes_is_no_verdict(tmp_path: Path, column: str) -> None:
    found = judged(tmp_path, {"preferred": "A"}, {column: []}, {column: [], "preferred": "B"})
    assert [(r.source, r.reason) for r in found.rejections] == [("judged.jsonl:1", "missing_field")]
    assert [record.completions[0] for record in found.records] == ["first", "second"]


def test_a_column_beside_the_verdict_that_is_none_is_named(tmp_path: Path) -> None:
    found = judged(tmp_path, {"winner": "A", "label": "Facts"}, {"choice": 0, "label": 3})
    assert account(found.counts)[0] == "not read: label (2 rows)"


@pytest.mark.parametrize("column", ["preference_strength", "overall_preference", "choice", "better_response_id"])
def test_a_scale_on_which_the_first_never_wins_is_refused(tmp_path: Path, column: str) -> None:
    rows = [{column: 1}] * 10
    with pytest.raises(UserError, match=rf"'{column}' is (never below 0|1 in all) .*10 rows.*data\.verdicts"):
        judged(tmp_path, *rows)
    found = judged(tmp_path, *rows, verdicts={1: "first", 2: "second"})
    assert {r.completions[0] for r in found.records} == {"first"}
    other = -1 if "prefer" in column and "id" not in column else 0
    assert len(judged(tmp_path, *rows, {column: other}).records) == 11


@pytest.mark.parametrize("code", ["A", "b", "tie", "[[B]]"])
def test_an_index_in_words(tmp_path: Path, code: str) -> None:
    (record,) = judged(tmp_path, {"choice": code}).records
    assert record.scores == ((0.5, 0.5) if code == "tie" else (1, 0))


@pytest.mark.parametrize("preference", [0, -1, 2.5, "3"])
def test_a_preference_outside_the_scale_of_alpaca_eval_is_refused(tmp_path: Path, preference: Any) -> None:
    row = {"instruction": "q", "output_1": "first", "output_2": "second", "preference": preference}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=r"'preference' is the number .*data\.verdicts"):
        read(DataConfig(path=str(tmp_path / "a.jsonl")))


def labelled(tmp_path: Path, *labels: Any, **settings: Any) -> ReadResult:
    path = tmp_path / "labelled.jsonl"
    rows = ({"prompt": f"q{i}", "completion": "a", "label": label} for i, label in enumerate(labels))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read(DataConfig(path=str(path), **settings))


@pytest.mark.parametrize("labels", [(1, 2), (1, 2, 3, 4, 5), (1, 0, -1), (0.0, 1.0, 0.3), ("1", "5"), (1, 0, 2)])
def test_labels_on_a_scale_are_refused(tmp_path: Path, labels: tuple[Any, ...]) -> None:
    with pytest.raises(UserError, match=r"may mean good or bad there.*data\.verdicts"):
        labelled(tmp_path, *labels)
    codes = {label: "desirable" if float(label) > 0.5 else "undesirable" for label in labels}
    found = labelled(tmp_path, *labels, verdicts=codes)
    assert [record.desirable for record in found.records] == [float(label) > 0.5 for label in labels]


@pytest.mark.parametrize(
    "labels", [(1, 0, 1), (True, False, True), ("1.0", "0.0", 1), (1, -1, 1), ("good", "bad", "Good")]
)
def test_how_labels_were_understood_is_said(tmp_path: Path, labels: tuple[Any, ...]) -> None:
    found = labelled(tmp_path, *labels)
    assert [record.desirable for record in found.records] == [True, False, True]
    (line,) = account(found.counts)
    assert line.startswith("labels: desirable 2, undesirable 1 (label=")
