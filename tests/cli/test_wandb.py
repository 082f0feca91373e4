"""A run that logs to wandb can be found by its method and options there, and its texts be read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prefopt.runs.run_folder import RunFolder
from tests.cli.conftest import Run
from tests.train.test_tracking import wandb_records

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),  # of wandb itself
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
]


def test_options_and_texts(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()
    assert run("tracking=wandb", "tracking.mode=offline", "loss=simpo", "loss.beta=2.5") == 0
    (folder,) = run.out.glob("wandb/offline-run-*")
    (file,) = folder.glob("run-*.wandb")
    config: dict[str, Any] = {}
    for record in wandb_records(file):
        if record.WhichOneof("record_type") == "config":
            for item in record.config.update:
                config[item.key or item.nested_key[0]] = json.loads(item.value_json)
    assert config["method"] == "simpo"
    assert config["prefopt"]["loss"]["beta"] == 2.5
    assert config["prefopt"]["data"]["path"] == RunFolder(run.out).config["data"]["path"]
    (table,) = folder.glob("files/media/table/texts*.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["prompt", "before", "after"]
    assert content["data"] == [
        [line["prompt"], line["before"], line["after"]]
        for line in map(json.loads, (run.out / "samples.jsonl").read_text().splitlines())
    ]
