"""Resolves the names of the embedded world (`model.path=world`, `data.path=world`) to what they stand for on disk."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefopt import worlds
from prefopt.common.digest import FileState, of_files
from prefopt.config.run_config import RunConfig
from prefopt.data.data_config import DataConfig
from prefopt.data.prepare import Prepared, prepare
from prefopt.errors import UserError
from prefopt.models.load import resolve
from prefopt.rewards.reward import Reward, from_function

MODELS = ("world", "world/base")  # after and before the SFT of the world's model


def resolve_path(path: str) -> str:
    """The folder or hub id that a name of a model stands for. The world and `package:` models are made once, in the
    cache."""
    if path not in MODELS:
        return resolve(path)
    files = worlds.resolve()
    return str(files.model if path == "world" else files.base)


def resolved(config: RunConfig) -> RunConfig:
    """The configuration with models that can be loaded. What is written down keeps their names."""
    model = config.model
    reference = model.reference and resolve_path(model.reference)
    return dataclasses.replace(
        config, model=dataclasses.replace(model, path=resolve_path(model.path), reference=reference)
    )


def resolved_data(data: DataConfig) -> DataConfig:
    """The configuration of data that can be read. Of the world, its validation pairs are held out by default."""
    if data.path != "world":
        return data
    files = worlds.resolve(data.world)
    held_out = data.eval_path or data.eval_records or data.eval_fraction
    eval_path = data.eval_path if held_out else str(files.validation)
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
    return prepare(source, tokenizer, data, control_text=control_text, hold_out=True)


def resolved_reward(config: RunConfig) -> Reward | None:
    """The configured reward.

    Raises:
        UserError: no such reward.
    """
    return None if config.reward is None else named_reward(config.reward, config.data.world)


def named_reward(name: str, world: Mapping[str, Any]) -> Reward:
    """The reward of a name; `world` has the knobs of the built-in world.

    Raises:
        UserError: no such reward.
    """
    if name == "world":
        return worlds.WorldReward(worlds.knobs(world))
    if ":" in name:
        return from_function(name)
    raise UserError(f"reward={name}: give world, module:function or file.py:function")


def digest_of_reward(config: RunConfig) -> str | None:
    """A digest of what the reward is made of, besides its name: the file of a function; None for a world's rule.

    Raises:
        UserError: no such reward.
    """
    reward = resolved_reward(config)
    function = getattr(reward, "function", None)
    try:
        file = None if function is None else inspect.getsourcefile(function)
    except TypeError:  # not written in Python, or an object that is called
        file = None
    return None if file is None else of_files([FileState.of(Path(file))])
