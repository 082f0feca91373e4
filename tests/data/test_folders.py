"""Which files of a folder are read, and that every other file is named with its reason."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import datasets
import pytest

from prefopt.data import DataConfig, ReadResult, read
from prefopt.data.account import account
from prefopt.errors import UserError


def rows(count: int, mark: str = "q") -> str:
    made = ({"prompt": f"{mark}{i}", "chosen": "a", "rejected": "b"} for i in range(count))
    return "".join(json.dumps(row) + "\n" for row in made)


def reading(folder: Path, **settings: object) -> ReadResult:
    return read(DataConfig(path=str(folder), **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("train", "test", "split"),
    [("train.jsonl", "test.jsonl", "test"),
     ("data/train-00000-of-00001.jsonl", "data/validation-0.jsonl", "validation"),
     ("train/part-0.jsonl", "test/part-0.jsonl", "test"), ("my_train.jsonl", "my_dev.jsonl", "validation"),
     ("training.jsonl", "eval.jsonl", "test")],
)  # fmt: skip
def test_splits_are_recognised_by_name(tmp_path: Path, train: str, test: str, split: str) -> None:
    folder = tmp_path / "set"
    for name, content in ((train, rows(20)), (test, rows(5, "t"))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    found = reading(folder)
    assert len(found.records) == found.counts["rows"] == 20
    assert account(found.counts) == [
        f"files: 1 read; not read: split {split}, data.eval_split={split} holds it out: {test}"
    ]
    assert len(reading(folder, split=split).records) == 5
    held_out = DataConfig(path=str(folder), eval_split=split).held_out()
    assert held_out is not None
    assert len(read(held_out).records) == 5


def test_a_split_beside_a_file_of_another_name_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("train.jsonl", "extra.jsonl"):
        (folder / name).write_text(rows(3))
    with pytest.raises(UserError, match=r"extra\.jsonl, whose name is none"):
        reading(folder)


@pytest.mark.parametrize("name", ["contest.jsonl", "latest.jsonl", "trained.jsonl", "testimony.jsonl"])
def test_a_word_that_holds_a_split_is_none(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / name).write_text(rows(2))
    (folder / "other.jsonl").write_text(rows(2, "o"))
    assert len(reading(folder).records) == 4


def test_every_file_is_read_or_named(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (elsewhere / "linked.jsonl").write_text(rows(2))
    (folder / "a.jsonl").write_text(rows(3, "a"))
    (folder / "b.jsonl.xz").write_bytes(lzma.compress(rows(4, "b").encode()))
    (folder / "e.jsonlines").write_text(rows(5, "e"))
    for name in ("dataset_info.json", ".hidden.jsonl", "README.md", "notes.txt"):
        (folder / name).write_text(rows(1))
    (folder / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    (folder / "more").symlink_to(elsewhere)
    found = reading(folder)
    assert len(found.records) == 3 + 4 + 5
    (line,) = account(found.counts)
    assert line.startswith("files: 3 read; not read: ")
    for part in ("hidden: .hidden.jsonl", "no data format: README.md, notes.txt", "a link to nothing: gone.jsonl",
                 "a link to a folder, which is not followed: more", "by its name: dataset_info.json"):  # fmt: skip
        assert part in line


def test_a_row_with_a_list_of_objects_is_no_file_of_rows(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "extra": [{"prompt": "x", "chosen": "y", "rejected": "z"}]}
    (tmp_path / "a.json").write_text(json.dumps(row))
    (record,) = read(DataConfig(path=str(tmp_path / "a.json"))).records
    assert record.prompt == "q"


def test_a_subset_is_a_folder_in_the_folder(tmp_path: Path) -> None:
    for name, count in (("main", 3), ("other", 5)):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "train.jsonl").write_text(rows(count, name))
    assert len(reading(tmp_path / "set", subset="main").records) == 3


def test_files_that_are_read_together_are_named(tmp_path: Path) -> None:
    for name in ("en", "de"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "train.jsonl").write_text(rows(2, name))
    assert account(reading(tmp_path / "set").counts) == [
        "files: 2 read; read together: de/train.jsonl, en/train.jsonl"
    ]  # fmt: skip


def test_a_subset_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set" / "main").mkdir(parents=True)
    (tmp_path / "set" / "main" / "a.jsonl").write_text(rows(3))
    with pytest.raises(UserError, match=r"no folder 'other' for data\.subset; it has \['main'\]"):
        reading(tmp_path / "set", subset="other")
    with pytest.raises(UserError, match="has no subsets"):
        reading(tmp_path / "set" / "main" / "a.jsonl", subset="main")
    assert len(reading(tmp_path / "set", subset="default").records) == 3


def test_splits_of_the_hub_have_their_own_names(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for name, count in (("train_prefs", 3), ("train_sft", 5), ("test_prefs", 2)):
        (folder / f"{name}-00000-of-00001.jsonl").write_text(rows(count, name))
    with pytest.raises(UserError, match=r"has the splits .*'train_prefs', 'train_sft'"):
        reading(folder)
    assert len(reading(folder, split="train_prefs").records) == 3
    held_out = DataConfig(path=str(folder), split="train_prefs", eval_split="test_prefs").held_out()
    assert held_out is not None
    assert len(read(held_out).records) == 2


@pytest.mark.parametrize("splits", [False, True])
def test_files_beside_a_saved_set_are_named(tmp_path: Path, splits: bool) -> None:
    table, folder = datasets.Dataset.from_list([json.loads(line) for line in rows(4).splitlines()]), tmp_path / "set"
    saved = datasets.DatasetDict({"train": table, "test": table.select([0])}) if splits else table
    saved.save_to_disk(folder)
    (folder / "extra.jsonl").write_text(rows(2, "x"))
    (folder / "train").mkdir(exist_ok=True)
    (folder / "train" / "more.jsonl").write_text(rows(2, "y"))
    found = reading(folder)
    assert len(found.records) == 4
    (line,) = account(found.counts)
    assert "not in the list of the saved set: extra.jsonl, train/more.jsonl" in line
    assert ("split test, data.split=test reads it: test" in line) == splits


def test_a_file_without_rows_and_keys_beside_rows_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    whole = {"version": 2, "license": "MIT", "data": [json.loads(line) for line in rows(2).splitlines()]}
    (folder / "a.json").write_text(json.dumps(whole))
    (folder / "b.jsonl").write_text("\n \n")
    found = reading(folder)
    assert len(found.records) == 2
    (line,) = account(found.counts)
    for part in ("no rows: b.jsonl", "a key beside the rows of a.json: version", "a.json: license"):
        assert part in line


@pytest.mark.parametrize("names", [("prompt", "chosen"), ("query", "answer_a"), ("post", "response 1")])
def test_one_row_that_holds_a_list_of_rows(tmp_path: Path, names: tuple[str, str]) -> None:
    inner = {"prompt": "x", "chosen": "y", "rejected": "z"}
    (tmp_path / "a.json").write_text(json.dumps({names[0]: "q", names[1]: "a", "extra": [inner]}))
    with pytest.raises(UserError, match="fit no known schema"):
        reading(tmp_path / "a.json")
