"""The real files: every oddity that their README lists is found and counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefopt.data import DataConfig, Rejection, prepare, read, to_view
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


def rows_of(rejections: list[Rejection], reason: str) -> list[int]:
    return [int(r.source.rsplit(":", 1)[1]) for r in rejections if r.reason == reason]


@pytest.mark.parametrize("name", FILES)
def test_schema_and_rows(shared_data: Path, name: str) -> None:
    schema, kind, rows = FILES[name]
    found = read(DataConfig(path=str(shared_data / name)))
    assert (found.schema, found.records[0].kind, found.counts["rows"]) == (schema, kind, rows)
    assert len(found.records) + len(found.rejections) == rows


def test_hh_rlhf(shared_data: Path) -> None:
    found = read(DataConfig(path=str(shared_data / "hh-rlhf/harmless-base-test.jsonl.gz")))
    assert rows_of(found.rejections, "empty_completion") == [86, 516, 925, 1103]
    assert rows_of(found.rejections, "prompt_mismatch") == [1254, 1688, 1950, 1952, 2036]
    assert len(found.records) == 2312 - 4 - 5


def test_identical_sides(shared_data: Path) -> None:
    found = read(DataConfig(path=str(shared_data / "llms-from-scratch/instruction-data-with-preference.json")))
    assert rows_of(found.rejections, "identical_sides") == [122, 226, 400, 566, 628, 676]
    assert len(found.records) == 1100 - 6


def test_duplicate_rows_have_ids_of_their_own(shared_data: Path) -> None:
    found = read(DataConfig(path=str(shared_data / "llama-factory/dpo_en_demo.json")))
    ids = [record.id for record in found.records]
    assert len(set(ids)) == 300
    assert sum("-" in name for name in ids) == 5


def test_gsm8k_views(shared_data: Path) -> None:
    records = read(DataConfig(path=str(shared_data / "gsm8k/example_model_solutions.jsonl.gz"))).records
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
