"""Broken trees and prompts with bad rows: only what is bad is left out, each part listed where it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.data import DataConfig, ReadResult, read
from prefopt.data.account import account
from prefopt.errors import UserError

Rows = list[dict[str, Any]]


def node(name: Any, parent: Any, rank: Any = None, **more: Any) -> dict[str, Any]:
    role = "assistant" if rank is not None else "prompter"
    return {"message_id": name, "parent_id": parent, "message_tree_id": "t", "role": role, "text": f"text {name}",
            "rank": rank, **more}  # fmt: skip


def steer(response: Any, score: Any = 1, prompt: Any = "q", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "response": response, "helpfulness": score, "correctness": 4, "coherence": 4, **more}


GOOD = [node("q", None), node("a", "q", 0), node("b", "q", 1)]


def reading(path: Path, rows: Rows, **settings: Any) -> ReadResult:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read(DataConfig(path=str(path), **settings))
    assert found.counts["rows"] == len(rows) == found.counts["rows_used"] + sum(r.rows for r in found.rejections)
    return found


@pytest.mark.parametrize(
    ("more", "listed"),
    [
        ([node("a", "q", 2)], [(3, "broken_tree", 1)]),  # an id that stands twice
        ([node(None, "q", 2)], [(3, "broken_tree", 1)]),
        ([node({"x": 1}, "q", 2)], [(3, "wrong_type", 1)]),
        ([node("c", "gone", 2), node("d", "c")], [(3, "broken_tree", 2)]),
        ([node("x", "y", 1), node("y", "x")], [(3, "broken_tree", 2)]),
        ([node("x", "x", 1)], [(3, "broken_tree", 1)]),
        ([node("c", "q", 2, text=" ")], [(3, "empty_completion", 1)]),
        ([node("c", "q", "high")], [(3, "wrong_type", 1)]),
        ([node("c", "q", 2, text=None)], [(3, "missing_field", 1)]),
        ([node("c", "q", 2, deleted=True)], [(3, "deleted", 1)]),
        ([node("c", "q", 2, deleted="True"), node("d", "c")], [(3, "deleted", 1), (4, "not_ranked", 1)]),
        ([node("c", "q", 2, images=["x.png"])], [(3, "unread_input", 1)]),
        ([node("c", "q", role="wizard")], [(3, "unknown_role", 1)]),
    ],
)  # fmt: skip
def test_only_the_bad_messages_of_a_tree_are_left_out(
    tmp_path: Path, more: Rows, listed: list[tuple[int, str, int]]
) -> None:
    found = reading(tmp_path / "tree.jsonl", [*GOOD, *more])
    assert [record.completions for record in found.records] == [("text a", "text b")]
    assert [(r.source, r.reason, r.rows) for r in found.rejections] == [
        (f"tree.jsonl:{row}", reason, rows) for row, reason, rows in listed
    ]


def test_a_tree_without_lists_is_listed_whole(tmp_path: Path) -> None:
    found = reading(tmp_path / "tree.jsonl", [*GOOD, {**node("r", None), "message_tree_id": "u"},
                                              {**node("s", "r"), "message_tree_id": "u"}])  # fmt: skip
    assert [(r.reason, r.rows) for r in found.rejections] == [("not_ranked", 2)]


def test_deleted_false_as_text(tmp_path: Path) -> None:
    assert not reading(tmp_path / "a.jsonl", [{**one, "deleted": "False"} for one in GOOD]).rejections


def test_what_a_nested_tree_leaves_out_is_listed(tmp_path: Path) -> None:
    replies = [{"role": "assistant", "text": text, "rank": rank, "lang": "en"}
               for text, rank in (("a", 0), ("b", 1), ("c", None), (" ", 2))]  # fmt: skip
    row = {"message_tree_id": "t", "prompt": {"role": "prompter", "text": "q", "replies": [*replies, "d"]}}
    found = reading(tmp_path / "a.jsonl", [row])
    assert [(r.reason, r.rows) for r in found.rejections] == [
        ("wrong_type", 0), ("empty_completion", 0), ("not_ranked", 0)
    ]  # fmt: skip
    assert found.records[0].completions == ("a", "b")
    assert account(found.counts) == ["not read: message_tree_id (1 rows), turns.lang (1 rows)"]


def test_only_the_bad_rows_of_a_prompt_are_left_out(tmp_path: Path) -> None:
    rows = [steer("a"), steer("b", "x"), steer("c", 2, images=["x.png"]), steer(" "), steer(None), steer("d", 3)]
    found = reading(tmp_path / "a.jsonl", rows)
    assert [record.completions for record in found.records] == [("a", "d")]
    assert sorted((r.source, r.reason) for r in found.rejections) == [
        ("a.jsonl:1", "wrong_type"), ("a.jsonl:2", "unread_input"), ("a.jsonl:3", "empty_completion"),
        ("a.jsonl:4", "missing_field"),
    ]  # fmt: skip
    assert not [r for r in reading(tmp_path / "a.jsonl", rows, ignore=["images"]).rejections if "images" in r.detail]


def test_rows_with_other_system_texts_answer_other_prompts(tmp_path: Path) -> None:
    rows = [steer("a", system="Be brief."), steer("b", 2, system="Be brief."), steer("c", system="Sing.")]
    found = reading(tmp_path / "a.jsonl", rows)
    assert [record.completions for record in found.records] == [("a", "b")]
    assert [r.source for r in found.rejections] == ["a.jsonl:2"]


def test_unread_columns_of_gathered_rows_are_counted(tmp_path: Path) -> None:
    found = reading(tmp_path / "a.jsonl", [steer("a", verbosity=1), steer("b", 2, verbosity=2, source="web")])
    assert account(found.counts) == ["not read: verbosity (2 rows), source (1 rows)"]
    found = reading(tmp_path / "b.jsonl", [{**one, "lang": "en"} for one in GOOD])
    assert account(found.counts) == ["not read: lang (3 rows)"]


ANSWERS = [{"response": "a", "score": 1}, {"response": "b", "score": 2}]


@pytest.mark.parametrize(
    ("row", "place"),
    [
        ({"instruction": "q", "completions": ANSWERS}, "completions"),
        ({"prompt": "q", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]}, "answers"),
        ({"info": {"post": "q"}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 0}, "summaries"),
        ({"question": "q", "m": [{"solution": "a", "is_correct": True}], "n": {"solution": "b", "is_correct": False},
          "o": {"solution": "c", "is_correct": True}}, "o"),
        ({"prompt": "q", "chosen": {"content": "a"}, "rejected": {"content": "b"}}, "chosen"),
    ],
)  # fmt: skip
def test_keys_of_objects_are_named_or_refused(tmp_path: Path, row: dict[str, Any], place: str) -> None:
    held = row[place][0] if isinstance(row[place], list) else row[place]
    held["policy"] = "p"
    assert f"{place}.policy (1 rows)" in account(reading(tmp_path / "a.jsonl", [row]).counts)[0]
    held["images"] = ["x.png"]
    with pytest.raises(UserError, match=rf"unread_input.*'{place}\.images'"):
        reading(tmp_path / "a.jsonl", [row])
    assert reading(tmp_path / "a.jsonl", [row], ignore=["images"]).records


def test_a_text_column_beside_the_prompt_of_a_judged_pair_is_refused(tmp_path: Path) -> None:
    row = {"prompt": "q", "context": "A play.", "response_a": "a", "response_b": "b", "winner": "A"}
    with pytest.raises(UserError, match=r"unread_input.*'context'"):
        reading(tmp_path / "a.jsonl", [row])


def test_a_type_is_named_as_in_the_file(tmp_path: Path) -> None:
    row = {"prompt": [{"role": "user", "content": {"text": "q"}}], "chosen": "a", "rejected": "b"}
    with pytest.raises(UserError, match=r"must be text, not dict"):
        reading(tmp_path / "a.jsonl", [row])
