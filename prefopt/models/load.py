"""Loads models by name: a folder, a hub id, or the GGUF file that an installed package carries."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
)

from prefopt.common.option_limits import check_limits
from prefopt.data.images.inputs import attach as attach_inputs
from prefopt.errors import PrefoptError, UserError, first_line, is_panic, of_machine
from prefopt.models import model_config
from prefopt.models.adapters import (
    BASE,
    attach,
    attach_saved,
    base_twin,
    check_settings,
    is_adapted,
    merged,
    saved_settings,
)
from prefopt.models.folder import check_files, check_layers, check_path
from prefopt.models.gguf import PACKAGE, from_package
from prefopt.models.model_config import ModelConfig
from prefopt.models.peft_config import PeftConfig
from prefopt.models.processor import has_processor, load_image_inputs, takes_images

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in model_config.DTYPES}


def resolve(path: str) -> str:
    """The folder, by its absolute path, or hub id behind `path`; a `package:` model is converted once, in the cache."""
    if path.startswith(PACKAGE):
        return str(from_package(path.removeprefix(PACKAGE)))
    return os.path.abspath(path) if os.path.isdir(path) else path  # an adapter names it, and is used from anywhere


def load_tokenizer(config: ModelConfig) -> Any:
    """Load the model's tokenizer.

    Raises:
        UserError: no tokenizer can be loaded from there.
    """
    path = resolve(config.path)
    with explaining(path, weights=False):
        check_files(path, config.revision, trust_remote_code=config.trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
        inputs = load_image_inputs(path, config.revision, tokenizer)
    if not isinstance(tokenizer.model_max_length, int | float):  # compared with lengths at every call
        raise UserError(f"model.path={config.path}: model_max_length in tokenizer_config.json is not a number")
    return tokenizer if inputs is None else attach_inputs(tokenizer, inputs)


def load_model(config: ModelConfig, path: str | None = None) -> Any:
    """Load a causal language model from safetensors.

    A folder with an adapter gives the model below it with the adapter merged.

    Args:
        config: the model, and how to load it.
        path: another model than `config.path`, such as the reference.

    Raises:
        UserError: no model can be loaded from there, or the dtype is unknown.
    """
    if path is not None:
        config = replace(config, path=path, revision=None)
    model = load_as_trained(config)
    return merged(model) if is_adapted(model) else model


def load_as_trained(config: ModelConfig) -> Any:
    """`load_model`, but leave an adapter beside the weights, as in training."""
    resolved = resolve(config.path)
    saved = saved_settings(resolved)
    if saved is None:
        return _load(config, resolved, config.revision)
    return attach_saved(_load(config, _base_of(saved)), resolved, trainable=False)


def load_policy(config: ModelConfig, peft: PeftConfig, *, seed: int) -> Any:
    """Load the model to train: a plain one for `peft.method=none`, else one with an adapter.

    The adapter in a folder with one is trained further; its settings must be those asked for.

    Args:
        config: the model.
        peft: which weights are trained.
        seed: seeds a fresh adapter.

    Raises:
        UserError: as `load_model`; settings that do not fit together.
    """
    peft.check()
    if peft.method == "none":
        if config.quantization is not None:
            raise UserError(f"model.quantization={config.quantization}: 4-bit weights cannot be trained themselves; "
                            "train an adapter on them (peft=qlora)")  # fmt: skip
        return load_model(config)
    quantization = quantized(config)
    resolved = resolve(config.path)
    if (saved := saved_settings(resolved)) is not None:
        check_settings(saved, peft, config.path)
        return attach_saved(_load(config, _base_of(saved), quantization=quantization), resolved, trainable=True)
    return attach(_load(config, resolved, config.revision, quantization=quantization), peft, seed=seed)


def load_reference(config: ModelConfig, policy: Any) -> Any:
    """Load the reference that `config.reference` names, sharing the policy's frozen weights where they are its own."""
    assert config.reference is not None
    resolved = resolve(config.reference)
    saved = saved_settings(resolved)
    base = resolved if saved is None else _base_of(saved)
    if not is_adapted(policy) or _sharded(policy) or base != policy.get_base_model().config.name_or_path:
        return load_model(config, config.reference)
    below = base_twin(policy)
    return below if saved is None else attach_saved(below, resolved, trainable=False)


def _sharded(model: Any) -> bool:
    """Whether the weights are sharded over processes (FSDP2), so that another model cannot share them."""
    return any(isinstance(p, DTensor) for p in model.parameters())


def quantized(config: ModelConfig) -> Any:
    """transformers' settings for `model.quantization`, or None.

    Raises:
        UserError: the kind is unknown, or this machine cannot do it.
    """
    if config.quantization is None:
        return None
    check_limits(config.LIMITS, config, "model")
    if not torch.cuda.is_available():
        raise UserError("model.quantization=nf4 needs a CUDA device, and there is none here: use peft=lora")
    if find_spec("bitsandbytes") is None:
        raise UserError("model.quantization=nf4 needs bitsandbytes: pip install bitsandbytes")
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype_of(config),
    )


def _base_of(saved: dict[str, Any]) -> str:
    base = resolve(saved[BASE])
    if saved_settings(base) is not None:
        raise UserError(f"the adapter's base model {base} is an adapter itself: merge that one first (prefopt export)")
    return base


def dtype_of(config: ModelConfig) -> torch.dtype:
    check_limits(config.LIMITS, config, "model")
    return DTYPES[config.dtype]


def _load(config: ModelConfig, resolved: str, revision: str | None = None, *, quantization: Any = None) -> Any:
    shared: dict[str, Any] = {"trust_remote_code": config.trust_remote_code, "revision": revision}
    how: dict[str, Any] = {"dtype": dtype_of(config), "use_safetensors": True}
    if quantization is not None:
        how |= {"quantization_config": quantization, "device_map": {"": torch.cuda.current_device()}}
    with explaining(resolved, weights=True):
        check_files(resolved, revision, trust_remote_code=config.trust_remote_code)
        settings = AutoConfig.from_pretrained(resolved, **shared)
        check_layers(settings, resolved)
        if any(str(name).endswith("ForSequenceClassification") for name in settings.architectures or ()):
            raise UserError(f"model.path={config.path} is a reward model, which predicts no tokens: it scores texts "
                            "(reward=, judge=, prefopt eval)")  # fmt: skip
        sees = takes_images(settings, resolved, revision)
        kind: Any = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        loaded: Any = kind.from_pretrained(resolved, config=settings, output_loading_info=True, **how, **shared)
        model, about = loaded
        inputs = load_image_inputs(resolved, revision) if sees else None
    if about["missing_keys"]:
        absent = sorted(about["missing_keys"])
        raise UserError(f"model.path={config.path}: {len(absent)} of the weights that its config asks for are not in "
                        f"its files ({', '.join(absent[:3])}); they would be random")  # fmt: skip
    return model if inputs is None else attach_inputs(model, inputs)


@contextmanager
def explaining(path: str, *, weights: bool) -> Iterator[None]:
    """Turn transformers' errors for a missing or broken model into one sentence with a remedy."""
    check_path(path, weights=weights)
    try:
        yield
    except PrefoptError:
        raise
    except BaseException as error:
        # Broken files can raise any error in five libraries; that of tokenizers is not even an Exception.
        if not (isinstance(error, Exception) or is_panic(error)) or of_machine(error):
            raise
        if "Unrecognized configuration class" in str(error):
            raise UserError(f"model.path={path}: {_no_causal_model(path)}") from error
        raise UserError(
            f"cannot load a model from model.path={path}: {first_line(error)[:300]}; give a folder with config.json, "
            "model.safetensors and a tokenizer, or a hub id that this machine can reach"
        ) from error


def _no_causal_model(path: str) -> str:
    """Why transformers has no causal language model for a config, and what to do."""
    settings = PreTrainedConfig.get_config_dict(path)[0]
    kind = (settings.get("architectures") or [settings.get("model_type", "it")])[0]
    if has_processor(path):
        return (f"transformers has no class of this kind for {kind}: it trains as AutoModelForImageTextToText loads "
                "it, and reward models for images need a family with a classifier, Gemma 3 or Qwen3.5")  # fmt: skip
    if "text_config" not in settings:
        return f"{kind} is not a causal language model (transformers has no AutoModelForCausalLM for it); give one"
    return (
        f"{kind} has a language model among other parts, such as one for images, and no processor beside it: copy its "
        "processor_config.json or preprocessor_config.json into the folder, or save its language model with the output "
        "layer as a folder of its own, and give that"
    )
