"""The real files: every oddity that their README lists is found and counted."""

from __future__ import annotations

import gzip
import json
import re
from functools import cache
from pathlib import Path

import pytest

from prefopt.data import DataConfig, Rejection, prepare, read, to_view
from prefopt.data.reader import ReadResult
from prefopt.data.schemas.prompts import transcript
from prefopt.plugin import Data
from tests.data.tiny import tokenizer

FILES = {
    "hh-rlhf/harmless-base-test.jsonl.gz": ("hh_rlhf", Data.PAIRS, 2312),
    "llms-from-scratch/instruction-data-with-preference.json": ("instruction_pair", Data.PAIRS, 1100),
    "llms-from-scratch/instruction-data.json": ("instruction_output", Data.DEMONSTRATIONS, 1100),
    "llama-factory/dpo_en_demo.json": ("sharegpt_pair", Data.PAIRS, 300),
    "llama-factory/kto_en_demo.json": ("messages_label", Data.UNPAIRED, 300),
    "llama-factory/v1_dpo_demo.jsonl": ("message_columns", Data.PAIRS, 10),
    "gsm8k/example_model_solutions.jsonl.gz": ("graded_solutions", Data.LISTS, 1319),
}


@cache
def read_file(path: Path) -> ReadResult:
    return read(DataConfig(path=str(path)))


def rows_of(rejections: list[Rejection], reason: str) -> list[int]:
    return [int(r.source.rsplit(":", 1)[1]) for r in rejections if r.reason == reason]


@pytest.mark.parametrize("name", FILES)
def test_schema_and_rows(shared_data: Path, name: str) -> None:
    schema, kind, rows = FILES[name]
    found = read_file(shared_data / name)
    assert (found.schema, found.records[0].kind, found.counts["rows"]) == (schema, kind, rows)
    assert len(found.records) + len(found.rejections) == rows


def test_hh_rlhf(shared_data: Path) -> None:
    found = read_file(shared_data / "hh-rlhf/harmless-base-test.jsonl.gz")
    assert rows_of(found.rejections, "empty_completion") == [86, 516, 925, 1103]
    assert len(found.records) == 2312 - 4
    several = [r.source for r in found.records if not all(isinstance(c, str) for c in r.completions)]
    assert [source.rsplit(":", 1)[1] for source in several] == ["1254", "1688", "1950", "1952", "2036"]


def test_identical_sides(shared_data: Path) -> None:
    found = read_file(shared_data / "llms-from-scratch/instruction-data-with-preference.json")
    assert rows_of(found.rejections, "identical_sides") == [122, 226, 400, 566, 628, 676]
    assert len(found.records) == 1100 - 6


def test_duplicate_rows_have_ids_of_their_own(shared_data: Path) -> None:
    found = read_file(shared_data / "llama-factory/dpo_en_demo.json")
    ids = [record.id for record in found.records]
    assert len(set(ids)) == 300
    assert sum("-" in name for name in ids) == 5


def test_gsm8k_views(shared_data: Path) -> None:
    records = read_file(shared_data / "gsm8k/example_model_solutions.jsonl.gz").records
    pairs = to_view(records, Data.PAIRS, pairs_from="all")
    assert len(pairs.records) == 2429
    assert pairs.counts["rejected/no_preference"] == 432 + 156  # all wrong, all right
    assert len(to_view(records, Data.PAIRS, pairs_from="best_worst").records) == 731
    labelled = to_view(records, Data.UNPAIRED, desirable_above=0.5).records
    assert len(labelled) == 4 * 1319
    assert round(sum(bool(r.desirable) for r in labelled) / len(labelled), 2) == 0.38


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_prepared(shared_data: Path, name: str) -> None:
    _, kind, rows = FILES[name]
    config = DataConfig(path=str(shared_data / name), max_length=4096, eval_records=2)
    ready = prepare(config, tokenizer(eos="<|im_end|>"), kind)
    assert len(ready.train) + 2 + len(ready.rejections) == rows
    assert ready.eval is not None
    assert not set(ready.train.prompt_keys()) & set(ready.eval.prompt_keys())


def test_hh_rlhf_dialogues(shared_data: Path) -> None:
    path = shared_data / "hh-rlhf/harmless-base-test.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    marked = sum(
        any(re.search("(?:Human|Assistant):", turn["content"]) for turn in transcript(row[side], side))
        for row in rows
        for side in ("chosen", "rejected")
    )
    assert marked == 73  # speakers inside the text are no turns
    records = read_file(path).records
    assert round(sum(len(record.prompt) > 1 for record in records) / len(records), 2) == 0.71


def test_sharegpt_turns(shared_data: Path) -> None:
    records = read_file(shared_data / "llama-factory/dpo_en_demo.json").records
    roles = [[turn["role"] for turn in record.prompt if not isinstance(turn, str)] for record in records]
    assert sum(turns[0] == "system" for turns in roles) == 80
    assert sum(turns.count("user") > 1 for turns in roles) == 106
    assert sum("\\x0c" in repr((record.prompt, record.completions)) for record in records) == 1  # the form feed stays


def test_labels_and_parts(shared_data: Path) -> None:
    labelled = read_file(shared_data / "llama-factory/kto_en_demo.json").records
    assert [sum(record.desirable is side for record in labelled) for side in (True, False)] == [150, 150]
    parts = read_file(shared_data / "llama-factory/v1_dpo_demo.jsonl").records
    assert all(isinstance(text, str) for record in parts for text in record.completions)


def test_inputs(shared_data: Path) -> None:
    path = shared_data / "llms-from-scratch/instruction-data-with-preference.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    records = read_file(path).records
    asked = {record.source.rsplit(":", 1)[1]: record.prompt[-1]["content"] for record in records}  # type: ignore[index]
    bare = [i for i, row in enumerate(rows) if not row["input"]]
    assert len(bare) == 775
    assert all(asked[str(i)] == rows[i]["instruction"] for i in bare if str(i) in asked)
