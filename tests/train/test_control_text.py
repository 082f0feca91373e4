"""A loss with a control text: good or bad begins the completion, and is trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.data import prepare
from prefopt.data.data_config import DataConfig
from prefopt.errors import UserError
from prefopt.losses.registry import load
from tests.data.tiny import tokenizer
from tests.train import tiny

PAIRS = [{"prompt": f"Question {i}?", "chosen": f"Yes {i}.", "rejected": f"No, {i * 3}."} for i in range(12)]
LABELLED = [
    {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
    for row in PAIRS
    for side in ("chosen", "rejected")
]


def _prepared(rows: list[Any], folder: Path, **settings: Any) -> Any:
    folder.mkdir(exist_ok=True)
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loss: Any = load("csft")
    config = DataConfig(path=str(file), cache_dir=str(folder / "cache"), **settings)
    return prepare(config, tokenizer(), loss.needs.data, control_text=loss.control_text)


@pytest.mark.parametrize("rows", [PAIRS, LABELLED], ids=["pairs", "unpaired"])
def test_each_completion_begins_with_the_text_of_its_label(rows: list[Any], tmp_path: Path) -> None:
    made = tokenizer()
    found = _prepared(rows, tmp_path).train
    assert len(found) == 24
    for record, row in zip(found, LABELLED, strict=True):
        text = "<|good|>" if row["label"] else "<|bad|>"
        completion = made.decode(record.completions[0], skip_special_tokens=True)
        assert completion.startswith(text)
        assert completion.count("<|") == 1
        assert completion.removeprefix(text).strip() == row["completion"]
        assert "<|" not in made.decode(record.prompt, skip_special_tokens=True)
        assert record.desirable is row["label"]
    assert len({record.id for record in found}) == 24


def test_both_sides_of_a_pair_are_held_out_together(tmp_path: Path) -> None:
    found = _prepared(PAIRS, tmp_path, eval_records=8)
    assert (len(found.train), len(found.eval)) == (16, 8)
    assert len({record.id.split(":")[0] for record in found.eval}) == 4


def test_the_text_counts_towards_the_length_and_is_never_cut(tmp_path: Path) -> None:
    whole = max(len(r.prompt) + len(r.completions[0]) for r in _prepared(PAIRS, tmp_path).train)
    made = tokenizer()
    for policy in ("keep_end", "keep_start"):
        found = _prepared(PAIRS, tmp_path / policy, max_length=whole - 3, truncation=policy, template="plain").train
        assert max(len(r.prompt) + len(r.completions[0]) for r in found) <= whole - 3
        assert all(made.decode(r.completions[0]).startswith(("<|good|>", "<|bad|>")) for r in found)


@pytest.mark.parametrize("rows", [PAIRS, LABELLED], ids=["pairs", "unpaired"])
def test_it_trains(rows: list[Any], tmp_path: Path) -> None:
    found = _prepared(rows, tmp_path)
    policy = tiny.model(vocab=len(tokenizer()))
    kept = tiny.run(load("csft"), found.train, tmp_path, policy, max_steps=6)
    assert kept.losses[-1] < kept.losses[0]


def test_pairs_as_they_are_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="control text"):
        tiny.make(load("csft"), tiny.records(load("dpo").needs.data, 4), tmp_path)
