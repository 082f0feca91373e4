"""What the names of the embedded world stand for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from prefopt import worlds
from prefopt.config.compose import compose
from prefopt.data.data_config import DataConfig
from prefopt.runs import sampling_rounds
from prefopt.runs.resolve import resolve_path, resolved, resolved_data
from prefopt.worlds.build import WorldFiles

NAMES = ("base", "model", "train", "validation", "test")
FILES = WorldFiles(**{name: Path("/world", name) for name in NAMES}, seconds={})  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "resolve", lambda *_: FILES)


def test_models_of_the_world_are_folders_and_others_stay() -> None:
    assert resolve_path("world") == "/world/model"
    assert resolve_path("world/base") == "/world/base"
    assert resolve_path("org/name") == "org/name"
    config = compose(["model=world_base", "model.reference=world"])
    found = resolved(config)
    assert (found.model.path, found.model.reference) == ("/world/base", "/world/model")
    assert config.plain()["model"]["path"] == "world/base", "what is written down keeps the name"


def test_the_worlds_validation_pairs_are_held_out_where_nothing_else_is() -> None:
    found = resolved_data(DataConfig(path="world", world={"label_flips": 0.2}))
    assert (found.path, found.eval_path, found.world) == ("/world/train", "/world/validation", {})
    assert resolved_data(DataConfig(path="world", eval_records=8)).eval_path is None
    assert resolved_data(DataConfig(path="world", eval_records=0)).eval_path is None
    assert resolved_data(DataConfig(path="world")).eval_path is not None
    assert resolved_data(DataConfig(path="world", eval_path="mine.jsonl")).eval_path == "mine.jsonl"
    other = DataConfig(path="pairs.jsonl")
    assert resolved_data(other) is other


def test_a_worlds_model_is_the_one_that_the_knobs_of_its_data_name(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []

    def found(knobs: object) -> WorldFiles:
        given.append(knobs)
        return FILES

    monkeypatch.setattr(worlds, "resolve", found)
    data = DataConfig(path="world", world={"width": 32})
    assert resolve_path("world", data) == "/world/model"
    resolve_path("world", DataConfig(path="pairs.jsonl"))
    resolve_path("world")
    config = compose(["data.world.seed=1", "model.reference=world/base"])
    assert resolved(config).model.reference == "/world/base"
    assert given == [{"width": 32}, None, None, {"seed": 1}, {"seed": 1}]


def test_what_is_trained_on_samples_of_a_world_is_the_model_that_wrote_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(worlds, "resolve", lambda knobs, *_: replace(FILES, model=Path(f"/world/{knobs['seed']}")))
    monkeypatch.setattr(sampling_rounds, "_make", lambda *_: {"held_out": False})
    given = ["source=samples", "reward=world", f"output_dir={tmp_path}"]
    config = compose([*given, "model=world_base", "model.reference=world", "data.world.seed=3"])
    after = sampling_rounds.with_samples(config, print)
    assert not after.data.is_world
    assert (resolved(after).model.path, resolved(after).model.reference) == ("/world/base", "/world/3")
