"""Loads reward models: sequence classifiers with one output, which plain transformers loads as well.

transformers reads the score of a text at its last token that is not the padding token. A text whose end token is the
padding token would be read one token early, so such a pair of tokens is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.utils import logging

from prefopt.common.files import write_json
from prefopt.data.images.inputs import attach as attach_inputs
from prefopt.data.images.inputs import same_images
from prefopt.data.tokenize import same_tokens
from prefopt.errors import UserError
from prefopt.models.adapters import (
    BASE,
    attach,
    attach_saved,
    check_settings,
    merged,
    saved_settings,
)
from prefopt.models.folder import check_files, check_layers
from prefopt.models.load import dtype_of, explaining, load_tokenizer, quantized, resolve
from prefopt.models.model_config import ModelConfig
from prefopt.models.peft_config import PeftConfig
from prefopt.models.processor import load_image_inputs, takes_images

FACTS = "reward_model.json"  # beside a reward model: its figures on the held-out records of its run
HEAD = "score"  # the output layer of transformers' classifiers on decoders


def is_reward_model(path: str) -> bool:
    """Whether a folder or hub id has a decoder that classifies sequences, or an adapter of one."""
    saved = saved_settings(path)
    if saved is not None:
        return bool(saved.get("task_type") == "SEQ_CLS")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError):  # what loads the model explains it
        return False
    if not any(str(name).endswith("ForSequenceClassification") for name in config.architectures or ()):
        return False
    with torch.device("meta"):
        return hasattr(AutoModelForSequenceClassification.from_config(config), HEAD)  # type: ignore[no-untyped-call]


def load_reward_model(config: ModelConfig, peft: PeftConfig, *, tokenizer: Any, seed: int) -> Any:
    """Load the reward model to train: a causal language model with a fresh output layer, or a reward model to train
    further; with an adapter unless `peft.method=none`.

    Args:
        config: the model.
        peft: which weights are trained; the output layer always is.
        tokenizer: its tokenizer, for the padding token.
        seed: seeds a fresh output layer and a fresh adapter.

    Raises:
        UserError: there is no such model, it cannot score texts, or its padding token ends texts.
    """
    peft.check()
    resolved = resolve(config.path)
    saved = saved_settings(resolved)
    quantization = quantized(config) if peft.method != "none" else None
    base = resolved if saved is None else saved[BASE]
    model = _load(config, base, config.revision if saved is None else None, seed=seed, quantization=quantization)
    set_padding(model, tokenizer)
    if saved is None:
        return model if peft.method == "none" else attach(model, peft, seed=seed, classifier=True)
    if saved.get("task_type") != "SEQ_CLS":
        raise UserError(f"model.path={config.path} is the adapter of a language model: merge it first (prefopt "
                        "export), and train a reward model from the folder that this makes")  # fmt: skip
    if peft.method == "none":
        return merged(attach_saved(model, resolved, trainable=False))
    check_settings(saved, peft, config.path)
    return attach_saved(model, resolved, trainable=True)


def check_value_model(path: str) -> None:
    """Raise UserError where `model.value_model=path` is no reward model."""
    if not is_reward_model(path):
        raise UserError(f"model.value_model={path} is no reward model: give final/ of a run with loss=bradley_terry "
                        "(or rm_list, pointwise), or the folder of a classifier with one output")  # fmt: skip


def load_value_model(config: ModelConfig, peft: PeftConfig, *, tokenizer: Any, seed: int) -> Any:
    """Load the reward model that a value model starts as, with an adapter unless `peft.method=none`; None for none.

    Raises:
        UserError: `config.value_model` is no reward model, or has another tokenizer or image processor than the policy.
    """
    path = config.value_model
    if path is None:
        return None
    check_value_model(path)
    config = replace(config, path=path, revision=None)
    own = load_tokenizer(config)
    if not (same_tokens(own, tokenizer) and same_images(own, tokenizer)):
        raise UserError(f"model.value_model={path} has another tokenizer or image processor than the policy, whose "
                        "tokens it reads: train a reward model from the policy's model, or leave it out")  # fmt: skip
    return load_reward_model(config, peft, tokenizer=own, seed=seed)


def open_reward_model(path: str, dtype: str = "float32", *, merge: bool = True) -> tuple[Any, Any]:
    """Load (model, tokenizer) of a trained reward model: a folder of a sequence classifier or of an adapter of one, or
    a hub id. An adapter is merged, or with `merge=False` left beside the weights, as in training.

    Raises:
        UserError: there is none, it has several outputs, or its padding token ends texts.
    """
    config = ModelConfig(path=path, dtype=dtype)
    saved = saved_settings(path)
    model = _load(config, path if saved is None else saved[BASE], None, trained=saved is None)
    if saved is not None:
        model = attach_saved(model, path, trainable=False)
        model = merged(model) if merge else model
    tokenizer = load_tokenizer(config)
    set_padding(model, tokenizer)
    return model.eval(), tokenizer


def set_padding(model: Any, tokenizer: Any) -> None:
    """Give model and tokenizer a padding token that ends no text.

    Raises:
        UserError: there is none.
    """
    ends = {tokenizer.eos_token_id, *_listed(model.config.get_text_config().eos_token_id)} - {None}
    own = model.config.get_text_config().pad_token_id
    candidates = (tokenizer.pad_token_id, own, tokenizer.unk_token_id)
    pad = next((token for token in candidates if token is not None and token not in ends), None)
    if pad is None:
        raise UserError(
            "the tokenizer has no padding token other than its end token: a classifier takes a text to end before its "
            "padding, and would read every score one token early; set pad_token in its tokenizer_config.json to a "
            "token that no text ends with"
        )
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = pad


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _load(
    config: ModelConfig, path: str, revision: str | None, *, seed: int = 0, quantization: Any = None,
    trained: bool = False,
) -> Any:  # fmt: skip
    """A sequence classifier with one output; a fresh output layer unless a `trained` one is asked for."""
    shared: dict[str, Any] = {"trust_remote_code": config.trust_remote_code, "revision": revision}
    how: dict[str, Any] = {"dtype": dtype_of(config), "use_safetensors": True}
    if quantization is not None:
        how |= {"quantization_config": quantization, "device_map": {"": torch.cuda.current_device()}}
    verbosity = logging.get_verbosity()
    with explaining(path, weights=True):
        check_files(path, revision, trust_remote_code=config.trust_remote_code)
        settings = AutoConfig.from_pretrained(path, **shared)
        check_layers(settings, path)
        classifier = any("ForSequenceClassification" in str(name) for name in settings.architectures or ())
        if classifier and settings.num_labels != 1:
            raise UserError(f"{path} has {settings.num_labels} outputs: a reward model has one")
        settings.num_labels = 1
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # the fresh output layer is meant
        try:
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                path, config=settings, output_loading_info=True, **how, **shared
            )
        finally:
            logging.set_verbosity(verbosity)
        inputs = load_image_inputs(path, revision) if takes_images(settings, path, revision) else None
    model, about = loaded
    head = getattr(model, HEAD, None)
    if not isinstance(head, nn.Linear) or head.out_features != 1:
        raise UserError(f"{type(model).__name__} has no linear output layer called {HEAD}: it cannot be a reward model")
    absent = sorted(name for name in about["missing_keys"] if not name.startswith(f"{HEAD}."))
    if absent or (trained and about["missing_keys"]):
        names = ", ".join((absent or sorted(about["missing_keys"]))[:3])
        raise UserError(f"{path}: weights that its config asks for are not in its files ({names}); they would be random"
                        + ("" if absent else ": is it a reward model?"))  # fmt: skip
    if about["missing_keys"]:
        _fresh(head, seed)
    return model if inputs is None else attach_inputs(model, inputs)


def _fresh(head: nn.Linear, seed: int) -> None:
    """An output layer N(0, 1 / sqrt(H + 1)), which gives scores of about 1 at first (Huang et al., 2024)."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        head.weight.normal_(0.0, (head.in_features + 1) ** -0.5)
        if head.bias is not None:
            head.bias.zero_()


def write_facts(folder: Path, figures: Mapping[str, Any]) -> None:
    """Keep beside a reward model its figures on the held-out records of its run (`prefopt.evaluate.reward_figures`)."""
    write_json(folder / FACTS, dict(figures))


def score_mean(path: str) -> float | None:
    """The mean score on the held-out records of its run, where the folder of a reward model has it."""
    file = Path(path, FACTS)
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get("score")
    except (OSError, ValueError, AttributeError):
        return None
    return float(found) if isinstance(found, int | float) and math.isfinite(found) else None
