"""Hub sets, with the hub's own library asked for a set that is on this disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pytest

from prefopt.data import DataConfig, prepare, read
from prefopt.errors import UserError
from prefopt.plugin import Data
from tests.data.tiny import tokenizer

ROWS = {
    name: [{"prompt": f"{name} {i}?", "chosen": "yes", "rejected": "no"} for i in range(count)]
    for name, count in (("train", 30), ("test", 5))
}


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub with one set; what it was asked is kept."""
    asked: dict[str, Any] = {"rows": 0}

    def splits(name: str, subset: str | None) -> list[str]:
        if name != "somebody/pairs":
            raise FileNotFoundError(f"Dataset '{name}' doesn't exist on the Hub\nor cannot be accessed")
        return list(ROWS)

    def load(name: str, subset: str | None, *, split: str, streaming: bool) -> Any:
        asked.update(name=name, subset=subset, split=split, streaming=streaming)
        if not streaming:
            return datasets.Dataset.from_list(ROWS[split])

        def stream() -> Iterator[dict[str, str]]:
            for row in ROWS[split]:
                asked["rows"] += 1
                yield row

        return stream()

    api = SimpleNamespace(dataset_info=lambda name: SimpleNamespace(sha="revision"))
    monkeypatch.setattr(datasets, "get_dataset_split_names", splits)
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    return asked


def test_the_train_split_is_taken(hub: dict[str, Any]) -> None:
    found = read(DataConfig(path="somebody/pairs"))
    assert (len(found.records), found.records[3].source) == (30, "somebody/pairs:3")
    assert hub == {"rows": 0, "name": "somebody/pairs", "subset": None, "split": "train", "streaming": False}


def test_split_subset_and_held_out_split(hub: dict[str, Any]) -> None:
    ready = prepare(DataConfig(path="somebody/pairs", subset="en", eval_split="test"), tokenizer(), Data.PAIRS)
    assert ready.eval is not None
    assert (len(ready.train), len(ready.eval), hub["subset"]) == (30, 5, "en")


def test_streaming_reads_no_more_than_it_needs(hub: dict[str, Any]) -> None:
    found = read(DataConfig(path="somebody/pairs", streaming=True, max_records=3))
    assert len(found.records) == 3
    assert hub["streaming"]
    assert hub["rows"] <= 64  # those looked at to recognise the schema


def test_unknown_split() -> None:
    with pytest.raises(UserError, match=r"\['train', 'test'\]"):
        read(DataConfig(path="somebody/pairs", split="dev"))


def test_out_of_reach() -> None:
    with pytest.raises(UserError, match="check the name and the network") as caught:
        read(DataConfig(path="somebody/else"))
    assert "\n" not in str(caught.value)


def test_a_folder_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "somebody" / "pairs").mkdir(parents=True)
    with pytest.raises(UserError, match="no data file"):
        read(DataConfig(path="somebody/pairs"))
