"""Resolves the names of worlds (`model.path=world`, `data.path=world`) to what they stand for on disk."""

from __future__ import annotations

import dataclasses
from typing import Any

from prefopt import worlds
from prefopt.config.run_config import RunConfig
from prefopt.data.data_config import DataConfig
from prefopt.data.prepare import Prepared, prepare
from prefopt.data.world_names import WORLD_MODELS
from prefopt.models.load import resolve


def resolve_path(path: str, data: DataConfig | None = None) -> str:
    """The folder or hub id that a name of a model stands for. Worlds' and `package:` models are made once, in the
    cache. `data` of the same world says by its knobs which of its models."""
    if path not in WORLD_MODELS:
        return resolve(path)
    if data is None or not data.is_world or (path == worlds.INSTRUCTIONS) != (data.path == worlds.INSTRUCTIONS):
        return worlds.model_folder(path)
    return worlds.model_folder(path, data.world)


def resolved(config: RunConfig) -> RunConfig:
    """The configuration with models that can be loaded. What is written down keeps their names."""
    model = config.model
    paths = {"path": model.path, "reference": model.reference, "value_model": model.value_model}
    found: dict[str, Any] = {name: path and resolve_path(path, config.data) for name, path in paths.items()}
    return dataclasses.replace(config, model=dataclasses.replace(model, **found))


def resolved_data(data: DataConfig) -> DataConfig:
    """The configuration of data that can be read. Of a world, its validation pairs are held out by default;
    `data.eval_records=0` holds out nothing."""
    if not data.is_world:
        return data
    files = worlds.resolve(data.world, str(data.path))
    by_default = data.eval_path is None and data.eval_records is None and not data.eval_fraction
    eval_path = str(files.validation) if by_default else data.eval_path
    return dataclasses.replace(data, path=str(files.train), eval_path=eval_path, world={})


def prepared_data(config: RunConfig, tokenizer: Any) -> Prepared:
    """The configured data in tokens; where the policy writes its own texts, records of any kind, for their prompts. Of
    the user's own data a part is held out by default."""
    needs = config.loss.needs
    data = None if config.source == "rollouts" else needs.data
    control_text = config.loss.control_text if needs.control_text else None  # type: ignore[attr-defined]
    source = resolved_data(config.data)
    if source.ties == "auto":
        source = dataclasses.replace(source, ties="keep" if needs.ties or needs.probability else "drop")
    prepared = prepare(source, tokenizer, data, control_text=control_text, hold_out=True)
    # The world's labels are noisy on purpose, and its size is what it is: advice on them is of no use.
    return dataclasses.replace(prepared, warnings=[]) if config.data.is_world else prepared
