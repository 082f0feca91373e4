"""Facts of rows that make one record together: tools, template arguments, open completions, weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.data import DataConfig, read, to_view
from prefopt.data.reader import ReadResult
from prefopt.plugin import Data

ADD: dict[str, Any] = {"type": "function", "function": {"name": "add", "parameters": {}}}
SUB: dict[str, Any] = {"type": "function", "function": {"name": "sub", "parameters": {}}}


def steer(response: str, score: float = 1, **more: Any) -> dict[str, Any]:
    scores = dict.fromkeys(("helpfulness", "correctness", "coherence"), score)
    return {"prompt": "1+2?", "response": response, **scores, **more}


def node(name: str, parent: str | None, rank: int | None = None, **more: Any) -> dict[str, Any]:
    role = "assistant" if parent == "q" else "prompter"
    return {"message_id": name, "parent_id": parent, "message_tree_id": "t", "text": f"text {name}", "role": role,
            "rank": rank, **more}  # fmt: skip


def reading(tmp_path: Path, *rows: dict[str, Any], **settings: Any) -> ReadResult:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read(DataConfig(path=str(path), **settings))


TREE = [node("q", None), node("a", "q", 0), node("b", "q", 1)]


@pytest.mark.parametrize("tools", [[ADD], json.dumps([ADD])])
def test_answers_with_the_same_tools_make_one_list(tmp_path: Path, tools: Any) -> None:
    given = {"tools": tools, "chat_template_kwargs": {"enable_thinking": False}}
    (record,) = reading(tmp_path, steer("3", **given), steer("4", 0, **given)).records
    assert record.completions == ("3", "4")
    assert record.arguments == {"enable_thinking": False, "tools": [ADD]}
    (pair,) = to_view([record], Data.PAIRS, pairs_from="all").records
    assert pair.arguments == record.arguments


def test_answers_with_other_tools_answer_another_prompt(tmp_path: Path) -> None:
    rows = [steer(text, i, tools=[tool] if tool else None) for tool in (ADD, SUB, None) for i, text in enumerate("ab")]
    assert [r.arguments.get("tools") for r in reading(tmp_path, *rows).records] == [[ADD], [SUB], None]


def test_the_tools_of_a_tree_are_those_of_any_of_its_messages(tmp_path: Path) -> None:
    (record,) = reading(tmp_path, {**TREE[0], "tools": [ADD]}, *TREE[1:]).records
    assert record.arguments == {"tools": [ADD]}
    nested = {"text": "q", "role": "prompter",
              "replies": [{"text": text, "role": "assistant", "rank": i} for i, text in enumerate("ab")]}  # fmt: skip
    (record,) = reading(tmp_path, {"message_tree_id": "t", "prompt": nested, "tools": [ADD]}).records
    assert record.arguments == {"tools": [ADD]}


@pytest.mark.parametrize("facts", [({"tools": [ADD]}, {"tools": [SUB]}), ({"weight": 1}, {"weight": 2})])
def test_rows_of_one_record_that_disagree_are_rejected(
    tmp_path: Path, facts: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    rows = [TREE[0] | facts[0], TREE[1] | facts[1], TREE[2], node("q", None) | {"message_tree_id": "u"}]
    found = reading(tmp_path, *rows, *({**one, "message_tree_id": "v"} for one in TREE))
    assert next((r.source, r.reason, r.rows) for r in found.rejections) == ("rows.jsonl:0", "rows_disagree", 3)
    assert len(found.records) == 1


def test_weights_of_gathered_rows_are_those_of_the_record(tmp_path: Path) -> None:
    (record,) = reading(tmp_path, steer("3", weight=2), steer("4", 0, weight=2.0)).records
    assert record.weight == 2.0
    (record,) = reading(tmp_path, *({**one, "weight": 0.5} for one in TREE)).records
    assert record.weight == 0.5


@pytest.mark.parametrize(
    ("ended", "settings", "expected"),
    [
        ((True, "false"), {}, (True, False)),
        ((None, False), {}, (True, False)),
        ((None, None), {}, None),
        ((None, True), {"ended": False}, (False, True)),
        (("", True), {"ended": False}, (False, True)),
        (("", " "), {"ended": False}, (False, False)),
        ((True, "true"), {"ended": False}, None),
        ((False, ""), {}, (False, True)),
    ],
)
def test_each_answer_says_whether_it_ends(
    tmp_path: Path, ended: tuple[Any, Any], settings: dict[str, Any], expected: tuple[bool, bool] | None
) -> None:
    rows = [steer("3", ended=ended[0]), steer("4", 0, ended=ended[1])]
    assert [r.ended for r in reading(tmp_path, *rows, **settings).records] == [expected]
    rows = [TREE[0], TREE[1] | {"ended": ended[0]}, TREE[2] | {"ended": ended[1]}]
    assert [r.ended for r in reading(tmp_path, *rows, **settings).records] == [expected]


def test_a_list_for_one_completion_is_rejected(tmp_path: Path) -> None:
    good = [steer("3"), steer("4")]
    found = reading(tmp_path, *({**one, "prompt": "2?"} for one in good), steer("3", ended=[True, False]), steer("4"))
    assert (len(found.records), [r.reason for r in found.rejections]) == (1, ["wrong_type"] * 2)


@pytest.mark.parametrize("more", [{}, {"ended": True}])
def test_too_few_answers_are_named_as_such_whatever_ends(tmp_path: Path, more: dict[str, Any]) -> None:
    alone = [
        steer("3", prompt="2?", **more),
        {**TREE[0], "message_tree_id": "u"},
        {**TREE[1], **more, "message_tree_id": "u"},
    ]
    for row, good in ((alone[:1], [steer("3"), steer("4", 0)]), (alone[1:], TREE)):
        found = reading(tmp_path, *row, *good, ended=False)
        assert {r.reason for r in found.rejections} == {"too_few_completions"}
        assert [r.ended for r in found.records] == [(False, False)]


def test_a_tree_in_one_row_is_open_where_its_answers_say_nothing(tmp_path: Path) -> None:
    replies = [
        {"text": t, "role": "assistant", "rank": i, "ended": e} for i, (t, e) in enumerate((("a", True), ("b", None)))
    ]
    row = {"message_tree_id": "t", "prompt": {"text": "q", "role": "prompter", "replies": replies}}
    assert [r.ended for r in reading(tmp_path, row, ended=False).records] == [(True, False)]
