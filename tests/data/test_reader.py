"""One set in every format gives the same records: ids come from the content, not from the file."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import shutil
import sys
import unicodedata
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from prefopt.data import DataConfig, read
from prefopt.data.data_config import Source
from prefopt.errors import UserError

ROWS = [
    {"prompt": f"Frage {i}: Wie heißt es?\nGenau, bitte", "chosen": f"Café, „{i}“", "rejected": f'No, "{i}", never'}
    for i in range(20)
]


def as_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def as_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")


def as_wrapped(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps({"version": 1, "data": rows}))


def as_columns(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps({name: [row[name] for row in rows] for name in rows[0]}))


def as_gz(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def as_zst(path: Path, rows: list[dict[str, Any]]) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def as_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)


def as_arrow_stream(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


def as_arrow_file(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def as_utf16(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-16")


def as_decomposed(path: Path, rows: list[dict[str, Any]]) -> None:
    """Other Unicode composition, other line ends, other key order."""
    lines = (json.dumps(dict(reversed(row.items())), ensure_ascii=False) for row in rows)
    path.write_text(
        unicodedata.normalize("NFD", "".join(f"{line}\r\n" for line in lines)), encoding="utf-8", newline=""
    )


def as_folder(path: Path, rows: list[dict[str, Any]]) -> None:
    path.mkdir()
    as_jsonl(path / "part-0.jsonl", rows[:7])
    as_parquet(path / "part-1.parquet", rows[7:])
    (path / "README.md").write_text("not data")


def as_saved_set(path: Path, rows: list[dict[str, Any]]) -> None:
    datasets.Dataset.from_list(rows).save_to_disk(path)


def as_saved_splits(path: Path, rows: list[dict[str, Any]]) -> None:
    datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list(rows[:3])}
    ).save_to_disk(path)


FORMATS = {
    "a.jsonl": as_jsonl, "a.json": as_json, "b.json": as_wrapped, "c.json": as_columns, "a.jsonl.gz": as_gz,
    "a.jsonl.zst": as_zst, "a.csv": as_csv, "a.parquet": as_parquet, "a.arrow": as_arrow_stream,
    "b.arrow": as_arrow_file, "utf16.jsonl": as_utf16, "nfd.jsonl": as_decomposed, "folder": as_folder,
    "saved": as_saved_set, "splits": as_saved_splits,
}  # fmt: skip


def ids(path: Path, **settings: Any) -> list[str]:
    return [record.id for record in read(DataConfig(path=str(path), **settings)).records]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("expected")
    as_jsonl(folder / "a.jsonl", ROWS)
    return ids(folder / "a.jsonl", cache_dir=str(folder))


@pytest.mark.parametrize("name", FORMATS)
def test_format(tmp_path: Path, expected: list[str], name: str) -> None:
    FORMATS[name](tmp_path / name, ROWS)
    assert ids(tmp_path / name) == expected


@pytest.mark.parametrize("labelled", [True, False])
def test_a_json_file_with_one_row(tmp_path: Path, labelled: bool) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    other = [turns[0], {"role": "assistant", "content": "Go away"}]
    row = {"messages": turns, "label": True} if labelled else {"chosen": turns, "rejected": other}
    (tmp_path / "a.json").write_text(json.dumps(row))
    assert len(read(DataConfig(path=str(tmp_path / "a.json"))).records) == 1


def test_ids_do_not_change(expected: list[str]) -> None:
    """A change of these is a change of every held-out split: it belongs under "Numbers changed"."""
    assert expected[:2] == ["b4e3d3b4f5193fd4", "a959254aab5d2f95"]


def test_shuffled(tmp_path: Path, expected: list[str]) -> None:
    as_jsonl(tmp_path / "a.jsonl", random.Random(0).sample(ROWS, len(ROWS)))
    assert sorted(ids(tmp_path / "a.jsonl")) == sorted(expected)


def test_repeated_rows_have_numbered_ids(tmp_path: Path, expected: list[str]) -> None:
    as_jsonl(tmp_path / "a.jsonl", [ROWS[0], ROWS[1], ROWS[0], ROWS[0]])
    first, second = expected[:2]
    assert ids(tmp_path / "a.jsonl") == [first, second, f"{first}-2", f"{first}-3"]


def test_max_records(tmp_path: Path, expected: list[str]) -> None:
    as_jsonl(tmp_path / "a.jsonl", ROWS)
    assert ids(tmp_path / "a.jsonl", max_records=3) == expected[:3]


def test_splits_of_a_saved_set(tmp_path: Path, expected: list[str]) -> None:
    as_saved_splits(tmp_path / "set", ROWS)
    assert ids(tmp_path / "set", split="test") == expected[:3]
    with pytest.raises(UserError, match=r"choose one with data\.split"):
        ids(tmp_path / "set", split="validation")


def test_the_cache_follows_the_content(tmp_path: Path, expected: list[str]) -> None:
    path = tmp_path / "a.jsonl"
    as_jsonl(path, ROWS)
    stamp = path.stat()
    assert ids(path) == expected
    as_jsonl(path, [{**row, "prompt": row["prompt"].replace("bitte", "danke")} for row in ROWS])
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert path.stat().st_size == stamp.st_size
    assert ids(path) != expected


def test_a_second_read_comes_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_jsonl(tmp_path / "a.jsonl", [*ROWS, {**ROWS[0], "chosen": ""}])
    first = read(DataConfig(path=str(tmp_path / "a.jsonl")))
    monkeypatch.setattr(sys.modules[read.__module__], "recognise", None)
    second = read(DataConfig(path=str(tmp_path / "a.jsonl")))
    assert list(first.records) == list(second.records)
    assert (first.rejections, first.counts, first.schema) == (second.rejections, second.counts, second.schema)


def test_a_moved_file_is_the_same_data(tmp_path: Path, expected: list[str]) -> None:
    as_jsonl(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(tmp_path / "a.jsonl", tmp_path / "elsewhere" / "b.jsonl")
    records = read(DataConfig(path=str(tmp_path / "elsewhere" / "b.jsonl"))).records
    assert [record.id for record in records] == expected
    assert records[0].source == "b.jsonl:0"


def test_mixture(tmp_path: Path, expected: list[str]) -> None:
    as_jsonl(tmp_path / "one.jsonl", ROWS)
    as_jsonl(tmp_path / "two.jsonl", [{"q": f"Another {i}?", "chosen": "a", "rejected": "b"} for i in range(400)])
    mixture = [
        Source(path=str(tmp_path / "one.jsonl"), weight=2.0),
        Source(path=str(tmp_path / "two.jsonl"), weight=0.25, fields={"prompt": "q"}),
    ]
    found = read(DataConfig(mixture=mixture))
    assert found.schema == "prompt_pair+prompt_pair"
    names = [record.id for record in found.records]
    assert names[:40:2] == expected
    assert names[1:40:2] == [f"{name}-2" for name in expected]
    # a quarter of 400, drawn by hash: binomial, 100 expected, standard deviation 8.7; this draw never changes
    assert 74 < len(names) - 40 < 126
    assert found.counts["left_out_by_weight"] == 400 - (len(names) - 40)
    assert names == [record.id for record in read(DataConfig(mixture=mixture, cache_dir=str(tmp_path / "c"))).records]


def test_a_mixture_takes_plain_settings(tmp_path: Path) -> None:
    as_jsonl(tmp_path / "one.jsonl", ROWS)
    config = DataConfig(mixture=[{"path": str(tmp_path / "one.jsonl")}])  # type: ignore[list-item]
    assert len(read(config).records) == len(ROWS)
