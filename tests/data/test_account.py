"""The account cannot leak: in every schema and container each row is used, or listed with a reason."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from prefopt.data import DataConfig, ReadResult, prepare, read
from prefopt.data.account import account
from prefopt.data.doctor import examine
from prefopt.errors import UserError
from prefopt.plugin import Data
from tests.data.test_schemas import CASES
from tests.data.tiny import tokenizer

Rows = list[dict[str, Any]]


def steer(prompt: str, response: str, score: Any) -> dict[str, Any]:
    return {"prompt": prompt, "response": response, "helpfulness": score, "correctness": 4, "coherence": 4}


def node(name: str | None, parent: str | None, role: str, rank: int | None) -> dict[str, Any]:
    return {"message_id": name, "parent_id": parent, "message_tree_id": "t", "role": role, "text": f"text {name}",
            "rank": rank}  # fmt: skip


TREE = [node("q", None, "prompter", None), node("a", "q", "assistant", 0), node("b", "q", "assistant", 1)]
GATHERED = {
    "steer": [steer("q", "good", 4), steer("q", "bad", 1), steer("q", "", 3), steer("r", "alone", 2)],
    "tree": [*TREE, node("c", "q", "assistant", None), node("a", "q", "assistant", 2), node(None, "q", "assistant", 2),
             node("x", "y", "prompter", None), node("y", "x", "assistant", 0)],
}  # fmt: skip


def blanked(value: Any) -> Any:
    """The value with every text blank."""
    if isinstance(value, dict):
        return {key: held if key in ("role", "from") else blanked(held) for key, held in value.items()}
    if isinstance(value, list):
        return [blanked(held) for held in value]
    return " " if isinstance(value, str) else value


def lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_csv(path: Path, rows: Rows) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()})


def as_arrow(path: Path, rows: Rows) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def as_folder(path: Path, rows: Rows) -> None:
    path.mkdir()
    (path / "a.jsonl").write_bytes(lines(rows))
    (path / "README.md").write_text("not data")


def as_hub_folder(path: Path, rows: Rows) -> None:
    (path / "data").mkdir(parents=True)
    (path / "data" / "train-00000-of-00001.jsonl").write_bytes(lines(rows))
    (path / "data" / "test-00000-of-00001.jsonl").write_bytes(lines(rows[:1]))


CONTAINERS: dict[str, Callable[[Path, Rows], Any]] = {
    "a.json": lambda path, rows: path.write_text(json.dumps(rows)),
    "a.jsonl": lambda path, rows: path.write_bytes(lines(rows)),
    "a.jsonl.gz": lambda path, rows: path.write_bytes(gzip.compress(lines(rows))),
    "a.jsonl.bz2": lambda path, rows: path.write_bytes(bz2.compress(lines(rows))),
    "a.jsonl.xz": lambda path, rows: path.write_bytes(lzma.compress(lines(rows))),
    "a.jsonl.zst": lambda path, rows: path.write_bytes(pa.compress(lines(rows), "zstd", asbytes=True)),
    "a.csv": as_csv,
    "a.parquet": lambda path, rows: pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path),
    "a.arrow": as_arrow,
    "folder": as_folder,
    "hub": as_hub_folder,
    "saved": lambda path, rows: datasets.Dataset.from_list(rows).save_to_disk(path),
}


def balanced(found: ReadResult, rows: int) -> None:
    """The rows are the used ones and those of the rejections, and each rejection has a place."""
    assert found.counts["rows"] == rows == found.counts["rows_used"] + sum(r.rows for r in found.rejections)
    assert all(r.source and r.reason and r.detail for r in found.rejections)
    assert sum(n for name, n in found.counts.items() if name.startswith("rejected/")) == len(found.rejections)


@pytest.mark.parametrize("container", CONTAINERS)
def test_rows_are_used_or_listed(tmp_path: Path, container: str) -> None:
    for number, (schema, row, *_) in enumerate(CASES.values()):
        path = tmp_path / str(number) / container
        path.parent.mkdir()
        CONTAINERS[container](path, [row, blanked(row), row, blanked(row)])
        found = read(DataConfig(path=str(path), schema=schema))
        balanced(found, 4)
        assert len(found.records) == found.counts["rows_used"] == 2


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(("name", "used"), [("steer", 2), ("tree", 3)])
def test_gathered_rows_are_used_or_listed(tmp_path: Path, container: str, name: str, used: int) -> None:
    CONTAINERS[container](tmp_path / container, GATHERED[name])
    found = read(DataConfig(path=str(tmp_path / container)))
    balanced(found, len(GATHERED[name]))
    assert (len(found.records), found.counts["rows_used"]) == (1, used)


def pairs(path: Path, *more: dict[str, Any], count: int = 64) -> str:
    rows = [
        {"prompt": f"q{i}", "chosen": "a", "rejected": "b", **one} for i, one in enumerate([{}] * count + list(more))
    ]
    path.write_bytes(lines(rows))
    return str(path)


def test_max_records(tmp_path: Path) -> None:
    found = read(DataConfig(path=pairs(tmp_path / "a.jsonl", count=100), max_records=60))
    balanced(found, 60)
    assert account(found.counts) == ["data.max_records: reading stopped after 60 records"]


def test_ties_count_the_same_in_the_check_and_in_training(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    winners = ["A"] * 40 + ["tie"] * 60
    path.write_bytes(lines([{"prompt": f"q{i}", "response_a": "x", "response_b": "y", "winner": winner}
                            for i, winner in enumerate(winners)]))  # fmt: skip
    config = DataConfig(path=str(path))
    report = examine(config, tokenizer=tokenizer())
    ready = prepare(config, tokenizer(), Data.PAIRS)
    assert report.kept == len(ready.train) == 40
    assert report.reasons()["tie"]["count"] == ready.counts["rejected/tie"] == 60
    assert report.account == account(ready.counts)


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi", "id": 7}]
    path = pairs(tmp_path / "a.jsonl", {"source": "web", "prompt": turns}, {"source": "web", "tags": []}, count=1)
    assert account(read(DataConfig(path=path)).counts) == ["not read: source (2 rows), turns.id (1 rows)"]


@pytest.mark.parametrize(
    ("column", "value"),
    [("images", ["cat.png"]), ("tools", [{"name": "add"}]), ("weight", 0.5), ("chat_template_kwargs", {"x": 1}),
     ("context", "A play."), ("input", "x"), ("initial_reason_steps", "Step 1")],
)  # fmt: skip
def test_a_column_with_meaning_is_refused_by_name(tmp_path: Path, column: str, value: Any) -> None:
    path = pairs(tmp_path / "a.jsonl", {column: value}, {column: None})
    found = read(DataConfig(path=path))
    assert [r.reason for r in found.rejections] == ["unread_input"]
    assert f"'{column}'" in found.rejections[0].detail
    balanced(found, 66)
    assert not read(DataConfig(path=path, ignore=[column])).rejections


@pytest.mark.parametrize("key", ["reasoning_content", "images", "prefix"])
def test_a_key_of_a_turn_with_meaning_is_refused(tmp_path: Path, key: str) -> None:
    path = pairs(tmp_path / "a.jsonl", {"prompt": [{"role": "user", "content": "Hi", key: "x"}]}, count=0)
    with pytest.raises(UserError, match=f"unread_input.*{key}"):
        read(DataConfig(path=path))
    assert len(read(DataConfig(path=path, ignore=[key])).records) == 1


def test_a_weight_of_one_means_nothing(tmp_path: Path) -> None:
    assert not read(DataConfig(path=pairs(tmp_path / "a.jsonl", {"weight": 1.0}))).rejections
