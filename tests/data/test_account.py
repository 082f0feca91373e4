"""The account cannot leak: in every schema and container each row is used, or listed with a reason."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from prefopt.data import DataConfig, Prepared, ReadResult, prepare, read
from prefopt.data.account import account
from prefopt.data.doctor import examine
from prefopt.errors import UserError
from prefopt.losses.dpo import DPO
from prefopt.plugin import Data
from prefopt.train.sources.feed import Feed
from prefopt.train.sources.offline import Offline
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


def as_shards(path: Path, rows: Rows) -> None:
    """As the hub holds a set: two shards, another split, and files that are not data."""
    (path / "data").mkdir(parents=True)
    half = len(rows) // 2
    for name, part in (("train-00000-of-00002", rows[:half]), ("train-00001-of-00002", rows[half:]),
                       ("test-00000-of-00001", rows[:1])):  # fmt: skip
        pyarrow.parquet.write_table(pa.Table.from_pylist(part), path / "data" / f"{name}.parquet")
    for name in ("README.md", "dataset_infos.json", ".gitattributes"):
        (path / name).write_text("{}")


def as_config(path: Path, rows: Rows) -> None:
    """One configuration in a folder of its own."""
    (path / "default").mkdir(parents=True)
    (path / "default" / "train-00000-of-00001.jsonl").write_bytes(lines(rows))
    (path / "default" / "test-00000-of-00001.jsonl").write_bytes(lines(rows[:1]))
    (path / "dataset_infos.json").write_text("{}")


def as_splits(path: Path, rows: Rows) -> None:
    table = datasets.Dataset.from_list(rows)
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(path)


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
    "shards": as_shards,
    "config": as_config,
    "splits": as_splits,
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


def odd(value: Any, held: Any) -> Iterator[Any]:
    """The value with one part of it, at any depth, replaced."""
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        for other in (held, *odd(part, held)):
            changed = value.copy()
            changed[key] = other
            yield changed


@pytest.mark.parametrize("held", [None, [], {}, float("nan"), "1.0", [{}], [None], {"role": "assistant"}], ids=str)
def test_odd_values_anywhere_keep_the_sums(tmp_path: Path, held: Any) -> None:
    for name, (schema, row, *_) in CASES.items():
        rows = [row, *odd(row, held)]
        (tmp_path / f"{name}.jsonl").write_bytes(lines(rows))
        try:
            found = read(DataConfig(path=str(tmp_path / f"{name}.jsonl"), schema=schema))
        except UserError:
            continue  # a code without a meaning
        balanced(found, len(rows))
        assert len(found.records) == found.counts["records_made"]


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
    *lines_of_both, tokens = report.account
    assert lines_of_both == account(ready.counts)
    assert tokens.startswith("tokens: ")


def consistent(ready: Prepared, rows: int) -> None:
    """The sums agree from the rows to the records that an epoch trains on."""
    counts, by_reason = ready.counts, Counter(r.reason for r in ready.rejections)
    dropped = counts.get("rejected/prompt_held_out", 0)
    read = [r for r in ready.rejections if not r.id]
    assert counts["rows"] == rows == counts["rows_used"] + sum(r.rows for r in read)
    assert counts["records_read"] == (
        counts["records_made"] - counts.get("left_out_by_weight", 0) + counts.get("copied_by_weight", 0)
    )
    assert counts["records_tokenized"] == counts["records_shaped"] - counts["rejected_tokenized"]
    assert counts["records_tokenized"] == counts["train"] + counts["eval"] + dropped
    assert len(ready.rejections) == len(read) + counts["rejected_shaped"] + counts["rejected_tokenized"] + dropped
    assert {name: n for name, n in counts.items() if name.startswith("rejected/") and n} == {
        f"rejected/{reason}": n for reason, n in by_reason.items()
    }
    source = Offline(Feed(ready.train, DPO.needs, whole=False, seed=0), records=4, seed=1)
    for epoch in range(3):
        used = [place for step in range(len(source)) for place in source.step(epoch * len(source) + step).index]
        assert sorted(used) == list(range(counts["train"]))


BAD: Rows = [{"chosen": " "}, {"rejected": "a"}, {"margin": 0}, {"chosen": "word " * 200}, {"chosen": "a</s>b"},
             {"rejected": "a</s>"}, {"prompt": None}, {"margin": "wide"}]  # fmt: skip


def test_each_record_is_at_one_station(tmp_path: Path) -> None:
    config = DataConfig(path=pairs(tmp_path / "a.jsonl", *BAD, count=30), max_length=128, eval_records=5)
    ready = prepare(config, tokenizer(), Data.PAIRS)
    consistent(ready, 38)
    assert {name: ready.counts[f"records_{name}"] for name in ("read", "shaped", "tokenized")} == {
        "read": 34, "shaped": 33, "tokenized": 30
    }  # fmt: skip
    (line,) = account(ready.counts)
    assert line == ("flow: 38 rows (4 rejected) → 34 records → 33 converted (1 rejected) → 30 in tokens (3 rejected)")
    assert examine(config, tokenizer=tokenizer()).account[:-1] == [line]  # the last one tells tokens


def test_copies_and_parts_by_weight_are_counted(tmp_path: Path) -> None:
    paths = [pairs(tmp_path / f"{name}.jsonl", count=count) for name, count in (("a", 10), ("b", 40), ("c", 5))]
    mixture: Any = [{"path": path, "weight": weight} for path, weight in zip(paths, (2.5, 0.5, 1), strict=True)]
    ready = prepare(DataConfig(mixture=mixture), tokenizer(), Data.PAIRS)
    consistent(ready, 55)
    left, copied = ready.counts["left_out_by_weight"], ready.counts["copied_by_weight"]
    assert ready.counts["train"] == 55 - left + copied
    assert f"{left} left out by weight, {copied} copies by weight" in account(ready.counts)[0]


def test_a_held_out_file_has_an_account_of_its_own(tmp_path: Path) -> None:
    train, held_out = pairs(tmp_path / "a.jsonl", *BAD), pairs(tmp_path / "b.jsonl", {"chosen": " "}, count=3)
    ready = prepare(DataConfig(path=train, eval_path=held_out, max_length=128), tokenizer(), Data.PAIRS)
    assert [line.split(":")[0] for line in account(ready.counts)] == ["flow", "held-out flow"]
    assert account(ready.counts)[1].startswith("held-out flow: 4 rows (1 rejected) → 3 records")


@pytest.mark.parametrize("pairs_from", ["best_worst", "adjacent", "all"])
def test_lists_under_each_pairing(tmp_path: Path, pairs_from: str) -> None:
    scores = [[3, 2, 1], [1, 1, 0], [1, 1, 1], [0, 5, 5]]
    rows = [{"prompt": f"q{i}", "completions": ["x", "y", "z"], "scores": one} for i, one in enumerate(scores)]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    config = DataConfig(path=str(tmp_path / "a.jsonl"), pairs_from=pairs_from)
    ready = prepare(config, tokenizer(), Data.PAIRS)
    tied = {"best_worst": 0, "adjacent": 2, "all": 2}[pairs_from]
    expected = {"best_worst": 3, "adjacent": 4, "all": 7}[pairs_from]
    assert (ready.counts["train"], ready.counts.get("pairs_tied", 0)) == (expected, tied)
    assert [r.reason for r in ready.rejections] == ["no_preference"]
    *_, line = examine(config).account
    words = f"{expected} pairs ({f'{tied} tied, ' if tied else ''}1 lists without one)"
    assert f"data.pairs_from={pairs_from} {words}" in line


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi", "id": 7}]
    path = pairs(tmp_path / "a.jsonl", {"source": "web", "prompt": turns}, {"source": "web", "tags": []}, count=1)
    assert account(read(DataConfig(path=path)).counts) == ["not read: source (2 rows), turns.id (1 rows)"]


@pytest.mark.parametrize(
    ("column", "value"),
    [("videos", ["cat.mp4"]), ("weights", [0.5, 1.0]), ("context", "A play."), ("input", "x")],
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


@pytest.mark.parametrize(
    "more",
    [{"weight": 1.0}, {"weights": [1, 1.0]}, {"image": {"bytes": None, "path": None}}, {"images": [None, {}, " "]},
     {"tools": [{"name": None, "parameters": {"x": []}}]}],
)  # fmt: skip
def test_a_weight_of_one_and_objects_of_nulls_mean_nothing(tmp_path: Path, more: dict[str, Any]) -> None:
    found = read(DataConfig(path=pairs(tmp_path / "a.jsonl", more)))
    assert not found.rejections
    assert account(found.counts) == []
