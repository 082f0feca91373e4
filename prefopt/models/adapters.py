"""Attaches LoRA and DoRA adapters to a language model, and makes references that share its frozen weights.

Parameter-efficient tuning trains a small adapter; the weights below it stay as they are, so policy and reference can
share them in memory. `peft` does the adapters. Added here: names that match no layer are errors, adapters are read
from safetensors only, and a fresh adapter depends on the seed alone.
"""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers.pytorch_utils import Conv1D

from prefopt.common.bounds import is_costly
from prefopt.errors import UserError, first_line, nearest, of_machine
from prefopt.models.peft_config import ALL_LINEAR, PeftConfig

WEIGHTS = "adapter_model.safetensors"
SETTINGS, BASE = "adapter_config.json", "base_model_name_or_path"


def is_adapted(model: Any) -> bool:
    """Whether a model carries adapters."""
    return hasattr(model, "peft_config")


def attach(model: Any, config: PeftConfig, *, seed: int, classifier: bool = False) -> Any:
    """Attach a fresh adapter to a model and freeze the model's own weights. Until training the outputs stay the same.

    Args:
        model: a causal language model, or a sequence classifier.
        config: the adapter.
        seed: seeds its first matrix; the second is zero.
        classifier: of a sequence classifier the output layer, `score`, is trained whole and saved with the adapter.

    Raises:
        UserError: `peft` is not installed, or a name matches no layer.
    """
    require_peft()
    from peft import LoraConfig, get_peft_model

    config.check()
    check_targets(model, config.target_modules)
    every = config.target_modules == [ALL_LINEAR]
    settings = LoraConfig(
        task_type="SEQ_CLS" if classifier else "CAUSAL_LM",
        modules_to_save=["score"] if classifier else None,
        r=config.r,
        lora_alpha=config.alpha,
        target_modules=ALL_LINEAR if every else list(config.target_modules),
        lora_dropout=0.0,  # policy and reference must be comparable
        use_dora=config.method == "dora",
    )
    with torch.random.fork_rng(), _quiet():
        torch.manual_seed(seed)
        return get_peft_model(model, settings)


def attach_saved(model: Any, folder: str, *, trainable: bool) -> Any:
    """Attach the adapter in `folder` to the model that it was made for.

    Raises:
        UserError: `peft` is not installed, or the folder has no adapter in safetensors.
    """
    require_peft()
    from peft import PeftModel

    ends = _tied_ends(model)
    if not (Path(folder) / WEIGHTS).is_file():
        raise UserError(f"{folder} has {SETTINGS} but no {WEIGHTS}: adapters in other formats are not read")
    try:
        with _quiet():
            adapted = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
    except Exception as error:  # of peft, torch or safetensors
        if of_machine(error):
            raise
        resized = "size mismatch" in str(error)
        way = "; if its model was resized for new tokens, save the resized one and name it in " + SETTINGS
        raise UserError(
            f"the adapter in {folder} does not fit the model that it is for: {first_line(error)[:500]}"
            f"{way if resized else ''}"
        ) from error
    _check_attached(adapted, folder, ends)
    for settings in adapted.peft_config.values():
        settings.base_model_name_or_path = model.config.name_or_path  # what is saved can be used from any folder
    return adapted


def _check_attached(model: Any, folder: str, ends: Collection[str]) -> None:
    """Raise UserError where a saved adapter is not whole, or changes one of the `ends` that share their weights."""
    from peft import get_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    changed = (name for name, m in model.get_base_model().named_modules()
               if name in ends and isinstance(m, BaseTunerLayer | ModulesToSaveWrapper))  # fmt: skip
    if (name := next(changed, None)) is not None:
        raise UserError(f"the adapter in {folder} changes {name}, which {_TIED}; make one without it, or give the "
                        "model an output embedding of its own (tie_word_embeddings=false)")  # fmt: skip
    with safe_open(Path(folder) / WEIGHTS, framework="pt") as file:
        saved = set(file.keys())
    wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    unused = {name for name in saved - wanted if ".lora_" in name}
    for names, what in ((wanted - saved, "are not in its file; they would be untrained"), (unused, "match no layer")):
        if names:
            raise UserError(f"the adapter in {folder} does not fit the model that it is for: {len(names)} of its "
                            f"weights ({', '.join(sorted(names)[:3])}) {what}")  # fmt: skip


def saved_settings(path: str) -> dict[str, Any] | None:
    """The settings of the adapter in a folder, or None where the folder has no adapter.

    The folder of its model may be named by a relative path, from here or from the adapter.

    Raises:
        UserError: the settings cannot be read.
    """
    file = Path(path) / SETTINGS
    if not os.path.isfile(file):  # not `file.is_file()`, which raises for a name that is too long
        return None
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON: {error}") from error
    base = settings.get(BASE) if isinstance(settings, dict) else None
    if not isinstance(base, str) or not base:
        raise UserError(f"{file} does not name the model of the adapter ({BASE})")
    if settings.get("peft_type", "LORA") != "LORA":
        raise UserError(f"{file} has an adapter of type {settings['peft_type']!r:.40}: LoRA and DoRA are read")
    if settings.get("megatron_config") is not None:
        raise UserError(f"{file} names a module to import (megatron_config), which no adapter may do: take it out")
    assert isinstance(settings, dict)
    for key in ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern"):
        patterns = settings.get(key)
        for pattern in patterns if isinstance(patterns, list | dict) else [patterns]:
            if is_costly(str(pattern), nested=False):
                raise UserError(f"{file}: the regular expression {pattern!r:.120} of {key} can take unlimited time: "
                                "name the layers")  # fmt: skip
    places = (base, os.path.join(path, base))
    return settings | {BASE: next((os.path.abspath(place) for place in places if os.path.isdir(place)), base)}


def check_settings(saved: dict[str, Any], config: PeftConfig, path: str) -> None:
    """Raise UserError where an adapter to train further has other settings than those asked for.

    `target_modules` are the saved adapter's own, unless some are named.
    """
    method = "dora" if saved.get("use_dora") else "lora"
    kept = {"method": method, "r": saved.get("r"), "alpha": saved.get("lora_alpha")}
    if config.target_modules != [ALL_LINEAR]:
        kept["target_modules"] = sorted(saved.get("target_modules") or [])
    for name, value in kept.items():
        wanted = getattr(config, name)
        if (sorted(wanted) if isinstance(wanted, list) else wanted) != value:
            raise UserError(f"model.path={path} is an adapter with {name}={value}, which is trained further as it is: "
                            f"give peft.{name}={value}, or peft=none to merge it and train all weights")  # fmt: skip


def merged(model: Any) -> Any:
    """The plain model with its adapter's update added to the weights, all of which can be trained."""
    return model.merge_and_unload().requires_grad_(True)


def twin(model: Any, of: Any = None) -> Any:
    """Copy a model, but share every weight that training `model` never changes.

    A model that is trained in full is copied whole; one with an adapter gets a second adapter on the same base.
    Training `model` does not change the copy, and changing the copy does not change `model`.

    Args:
        model: the policy.
        of: what to copy; None: the policy itself.
    """
    shared = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model if of is None else of, shared)


def base_twin(model: Any) -> Any:
    """The model below an adapter, as a plain model that shares its weights."""
    return twin(model).unload()


def own_weights(model: Any, shared_with: Any) -> dict[str, nn.Parameter]:
    """The parameters, by name, that a model does not share with another."""
    others = {id(p) for p in shared_with.parameters()}
    return {name: p for name, p in model.named_parameters() if id(p) not in others}


def check_targets(model: Any, targets: Iterable[str]) -> None:
    """Raise UserError, with the nearest name, for a target that matches no layer of the model."""
    layers = _layers(model)
    known = sorted({name.rsplit(".", 1)[-1] for name in layers})
    for target in targets:
        if target == ALL_LINEAR:
            if not layers:
                raise UserError(f"{type(model).__name__} has no linear layer to put an adapter on")
            continue
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            raise UserError(f"peft.target_modules: no layer of {type(model).__name__} is called {target!r}"
                            f"{nearest(target, known)}; its layers: {', '.join(known)}")  # fmt: skip
        if any(name == target or name.endswith(f".{target}") for name in _tied_ends(model)):
            raise UserError(f"peft.target_modules: {target} {_TIED}; leave it out")


_TIED = "shares its weights between input and output of this model, so an adapter on it could not be merged"


def _tied_ends(model: Any) -> set[str]:
    """The names of input and output embedding where they share their weights."""
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    if last is None or last.weight is not first.weight:
        return set()
    return {name for name, module in model.named_modules() if module is first or module is last}


def _layers(model: Any) -> dict[str, nn.Module]:
    """The layers that an adapter can be put on, by their full names: linear ones and embeddings."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Embedding | Conv1D)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Ignore peft's warnings of what is checked here, and of an attribute that it reads under its old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing.", FutureWarning)
        warnings.filterwarnings("ignore", r"Found missing adapter keys|.*tie_word_embeddings=True")
        yield


def require_peft() -> None:
    """Raise UserError where `peft` is not installed."""
    if find_spec("peft") is None:
        raise UserError("adapters need peft: pip install 'prefopt-zoo[peft]'")
