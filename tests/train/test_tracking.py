"""Figures arrive where they are sent: read back from wandb's offline run folder, tensorboard's event file, mlflow's
store and trackio's database."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from prefopt.config.tracking import VARIABLES, TrackingConfig, tracker, trainer_options
from prefopt.errors import UserError
from prefopt.losses.registry import load
from prefopt.plugin import Data
from prefopt.runs.manifest import id_of
from tests.train import tiny

DATA = tiny.records(Data.PAIRS, 32)
WANTED = ("rewards/chosen", "rewards/accuracies", "logps/rejected", "logps_mean/chosen", "loss", "grad_norm")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),  # of the trackers themselves
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
]


def wandb_records(file: Path) -> list[Any]:
    """What is in the file of an offline run: protobuf messages in the log format of LevelDB."""
    from wandb.proto import wandb_internal_pb2

    raw, at, message, records = file.read_bytes(), 7, b"", []
    while at + 7 <= len(raw):
        if (left := 32768 - at % 32768) < 7:  # a header is never cut: the rest of the block is empty
            at += left
            continue
        length, last = int.from_bytes(raw[at + 4 : at + 6], "little"), raw[at + 6] in (1, 4)  # whole, or a last part
        if at + 7 + length > len(raw):  # being written
            break
        message += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if last:
            records.append(wandb_internal_pb2.Record())
            records[-1].ParseFromString(message)
            message = b""
    return records


def _wandb_rows(folder: Path) -> list[dict[str, Any]]:
    """The history of the one offline run in a folder, once its writer, a process of its own, has written the end."""
    records: list[Any] = []
    deadline = time.monotonic() + 300
    while not any(record.WhichOneof("record_type") == "exit" for record in records):
        assert time.monotonic() < deadline, "the writer has not ended"
        time.sleep(0.1)
        records = [record for file in folder.glob("wandb/offline-run-*/run-*.wandb") for record in wandb_records(file)]
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]


def test_a_resumed_run_is_the_same_run_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a name in its manifest; a new run, and one that starts anew in the folder, has another."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    first = id_of(tmp_path, None)
    (tmp_path / "manifest.json").write_text(json.dumps({"run_id": first}))
    assert id_of(tmp_path, tmp_path / "checkpoint-2") == first
    assert id_of(tmp_path, None) != first
    tracking = TrackingConfig(report_to="wandb")
    with tracker():
        trainer_options(tracking, tmp_path, first)
        assert (os.environ["WANDB_RUN_ID"], os.environ["WANDB_RESUME"]) == (first, "allow")
    assert "WANDB_RUN_ID" not in os.environ, "the next run of this process has its own"
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    with tracker():
        trainer_options(tracking, tmp_path, first)
        assert os.environ["WANDB_RUN_ID"] == "mine"


def test_the_runs_of_a_process_are_runs_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()
    for name in ("a", "b"):
        with tracker():
            options = trainer_options(TrackingConfig(report_to="wandb", mode="offline"), tmp_path / name, f"id{name}")
            tiny.run(load("dpo"), DATA, tmp_path / name, **options)
            assert wandb.run.id == f"id{name}"
        assert wandb.run is None
        assert list((tmp_path / name).glob(f"wandb/offline-run-*/run-id{name}.wandb"))


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()  # it reads its environment once a process, and another test may have been first
    try:
        kept = tiny.run(load("dpo"), DATA, tmp_path, eval=DATA, eval_strategy="steps", eval_steps=1,
                        report_to=["wandb"], run_name="tiny")  # fmt: skip
    finally:
        wandb.finish()
    rows = _wandb_rows(tmp_path)
    train = [row for row in rows if "train/loss" in row]
    assert [row["train/loss"] for row in train] == kept.losses
    for row, log in zip(train, kept.logs, strict=True):
        assert {name: row[f"train/{name}"] for name in WANTED} == {name: log[name] for name in WANTED}
    held_out = [row for row in rows if "eval/loss" in row]
    assert len(held_out) == 2
    assert "eval/rewards/accuracies" in held_out[0]


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    kept = tiny.run(load("kto"), DATA, tmp_path, report_to=["tensorboard"])
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    for name in (*WANTED, "z0"):
        found = {event.step: event.value for event in events.Scalars(f"train/{name}")}
        assert found == pytest.approx({n: log[name] for n, log in enumerate(kept.logs, 1)}, rel=1e-6), name


def test_nothing_is_reported_unless_asked(tmp_path: Path) -> None:
    names = {type(c).__name__ for c in tiny.make(load("simpo"), DATA, tmp_path).callbacks.callbacks}
    assert not names & {"WandbCallback", "TensorBoardCallback", "PrinterCallback", "ProgressCallback"}


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    options = trainer_options(TrackingConfig(report_to="mlflow", project="mine"), tmp_path / "run-1")
    try:
        kept = tiny.run(load("dpo"), DATA, tmp_path, **options)
        client = mlflow.MlflowClient()
        (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
        assert run.info.run_name == "run-1"
        for name in WANTED:
            found = {m.step: m.value for m in client.get_metric_history(run.info.run_id, name)}
            assert found == {n: log[name] for n, log in enumerate(kept.logs, 1)}, name
    finally:
        mlflow.end_run()
        monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    options = trainer_options(TrackingConfig(report_to="trackio", project="mine"), tmp_path / "run-1")
    kept = tiny.run(load("dpo"), DATA, tmp_path, **options)
    from trackio.sqlite_storage import SQLiteStorage

    rows = [row for row in SQLiteStorage.get_logs("mine", "run-1") if "train/loss" in row]
    assert [row["train/loss"] for row in rows] == kept.losses
    assert [row["train/rewards/accuracies"] for row in rows] == [log["rewards/accuracies"] for log in kept.logs]


def test_a_tracker_that_is_none_or_not_there_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="did you mean 'wandb'"):
        trainer_options(TrackingConfig(report_to="wanddb"), tmp_path)
    monkeypatch.setattr("prefopt.config.tracking.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'prefopt-zoo\[mlflow\]'"):
        trainer_options(TrackingConfig(report_to="mlflow"), tmp_path)
