"""Checks what the files of a model name, before a library opens or builds any of it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import transformers
from safetensors import safe_open
from transformers import PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME
from transformers.utils.hub import cached_file

from prefopt.common.bounds import is_costly
from prefopt.errors import UserError
from prefopt.models.gguf import check_no_gguf
from prefopt.models.hub import check_on_hub

BACKENDS = ("TokenizersBackend", "PythonBackend", "SentencePieceBackend", "MistralCommonBackend")
GROWTH = 64  # a text may become so many times as long; published tokenizers stay below 2
OF_A_TOKENIZER = re.compile(r"token|vocab|merges|piece|tekken|\.model$|\.py$")
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".npz")
IGNORED = ("tokenizer_file", "vocab_file", "special_tokens_map_file")  # paths of old times: transformers has its own


def check_path(path: str, *, weights: bool) -> None:
    """Check that a path does not name something else than a model, or with `weights=False` a tokenizer.

    Raises:
        UserError: a file, or a folder without what is asked for; with the way to give it.
    """
    check_no_gguf(path)
    if os.path.isfile(path):
        raise UserError(f"model.path={path} is a file: give the folder that it is in")
    names = os.listdir(path) if os.path.isdir(path) else None
    if names is None:
        check_on_hub(path)
        return
    if "final" in names and "config.yaml" in names:
        raise UserError(f"model.path={path} is the folder of a run: give {path}/final, its model")
    if not weights:
        if not any(map(OF_A_TOKENIZER.search, names)):
            raise UserError(
                f"model.path={path} has no tokenizer: copy the tokenizer's files (tokenizer.json, "
                "tokenizer_config.json) of its base model into it"
            )
    elif "config.json" not in names:
        raise UserError(f"model.path={path} has no config.json: give the folder of a model that transformers loads")
    elif not any(".safetensors" in name for name in names):
        other = next((f"; {name} is not read" for name in sorted(names) if name.endswith(OTHER_WEIGHTS)), "")
        raise UserError(f"model.path={path} has no model.safetensors{other}: load it with transformers where it "
                        "is trusted, and save it with save_pretrained")  # fmt: skip


def check_files(path: str, revision: str | None = None, *, trust_remote_code: bool = False) -> None:
    """Check what a model's configs name: files, tokenizer and kernels.

    Args:
        path: a folder or a hub id.
        revision: of a hub id.
        trust_remote_code: the model's own code may run, so that its tokenizer may be of any class.

    Raises:
        UserError: a file outside the model's folder or of another kind than safetensors, a tokenizer class that is
            none, or a kernel to download.
    """
    config, tokenizer = (_settings(path, name, revision) for name in ("config.json", "tokenizer_config.json"))
    check_kernels(config, path)
    _check_weights(path, revision, config)
    for name, settings in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        for key, file in _named_files(settings, path):
            if not _inside(file):
                raise UserError(f"{path}/{name}: {key} names {file!r:.80}, which is no file in the model's folder")
        if not trust_remote_code and not _is_tokenizer(found := settings.get("tokenizer_class")):
            raise UserError(
                f"{path}/{name}: tokenizer_class={found!r:.80} is not a tokenizer of transformers, and custom code is "
                "not run; write PreTrainedTokenizerFast there if the folder has a tokenizer.json"
            )
    if not trust_remote_code:
        _check_work(path, revision, tokenizer)


def _check_work(path: str, revision: str | None, tokenizer: dict[str, Any]) -> None:
    """Raise UserError for a tokenizer that can take unlimited time or memory for a text."""
    others = tokenizer.get("fast_tokenizer_files") or []
    for name in ("tokenizer.json", *others, "tekken.json"):
        settings = _settings(path, name, revision)
        parts = [settings.get(part) for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder")]
        growth = 1.0
        for part in _mappings([*parts, settings.get("config")]):
            pattern = part.get("pattern")
            regex = pattern.get("Regex") if isinstance(pattern, dict) else pattern
            if isinstance(regex, str) and is_costly(regex):
                raise UserError(
                    f"{path}/{name}: the regular expression {regex!r:.120} can take unlimited time; simplify it, or "
                    "set model.trust_remote_code=true if you trust the model's author"
                )
            growth *= _growth(part)
        if growth > GROWTH:
            raise UserError(f"{path}/{name}: its replacements make a text {growth:.3g} times as long; {GROWTH} times "
                            "are allowed")  # fmt: skip


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _mappings(part)


def _growth(part: dict[str, Any]) -> float:
    """How many times as long a part of a tokenizer can make a text."""
    match part:
        case {"type": "Replace", "content": str(content), "pattern": {"String": str(found)}}:
            return max(1.0, len(content) / max(1, len(found)))
        case {"type": "Replace", "content": str(content)}:
            return max(1.0, len(content))  # a regular expression may match each character
        case {"type": "TemplateProcessing", "single": list(single)}:
            return max(1.0, sum("Sequence" in piece for piece in single))
    return 1.0


def check_kernels(settings: Any, path: str) -> None:
    """Raise UserError where a model's `config.json` names a kernel to download: machine code of whoever uploaded it."""
    if isinstance(settings, dict):
        for name, value in settings.items():
            if str(name).endswith("_implementation") and "/" in str(value):
                raise UserError(f"model.path={path}: its config names a kernel to be downloaded, for attention or "
                                f"experts ({value}); take {name} out of config.json")  # fmt: skip
            check_kernels(value, path)


def check_layers(settings: Any, path: str) -> None:
    """Raise UserError where a model's config asks for more layers than its files can have.

    Making millions of layers takes hours, before anybody notices that there are no weights for them.
    """
    tensors = _count_tensors(Path(path))
    layers = getattr(settings.get_text_config(), "num_hidden_layers", 0)
    if tensors is not None and isinstance(layers, int) and layers > tensors:
        raise UserError(
            f"model.path={path}: its config asks for {layers} layers, its files have {tensors} tensors in all"
        )


def _count_tensors(folder: Path) -> int | None:
    """The number of tensors in the safetensors files of a folder; None where there are no files."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    count = 0
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            count += len(tensors.keys())
    return count if files else None


def _check_weights(path: str, revision: str | None, config: dict[str, Any]) -> None:
    """Raise UserError where the index of the weights, or the config, names anything but safetensors in the folder."""
    explicit = config.get("transformers_weights")
    if explicit is not None and not _inside(explicit, ".safetensors", ".safetensors.index.json"):
        raise UserError(
            f"{path}/config.json: transformers_weights={explicit!r:.80} is no safetensors file of the model"
        )
    for index in {SAFE_WEIGHTS_INDEX_NAME, explicit}:
        if index is None or not index.endswith(".index.json"):
            continue
        names = _settings(path, index, revision).get("weight_map", {})
        for name in names.values() if isinstance(names, dict) else [names]:
            if not _inside(name, ".safetensors"):
                raise UserError(f"{path}/{index}: weight_map names {name!r:.80}, which is no safetensors file in the "
                                "model's folder")  # fmt: skip


def _named_files(settings: dict[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """The keys of a config by which transformers opens other files, each with a file that it names."""
    for key, value in settings.items():
        if key in ("configuration_files", "fast_tokenizer_files"):
            yield from ((key, file) for file in (value if isinstance(value, list) else [value]))
        elif key.endswith("_file") and key not in IGNORED and isinstance(value, str):
            yield key, value


def _settings(path: str, name: str, revision: str | None) -> dict[str, Any]:
    """A config of a model; empty where it has none, or one that no library can read."""
    try:
        file = cached_file(path, name, revision=revision)
        settings = json.loads(Path(str(file)).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _inside(name: Any, *suffixes: str) -> bool:
    """Whether a name is that of a file in the folder of whoever names it, with one of these suffixes."""
    return (
        isinstance(name, str)
        and name.endswith(suffixes or ("",))
        and not PurePosixPath(name).is_absolute()
        and not {"..", ""} & set(name.split("/"))
        and "\\" not in name
    )


def _is_tokenizer(name: Any) -> bool:
    """Whether a name is that of a tokenizer class, or of none that transformers has: then it reads tokenizer.json."""
    if name is None or name in BACKENDS:
        return True
    if not isinstance(name, str) or not name.removesuffix("Fast").endswith("Tokenizer"):
        return False
    known = [c for n in (name, name.removesuffix("Fast"), f"{name}Fast") if (c := getattr(transformers, n, None))]
    return all(
        isinstance(c, type)
        # a dummy says which library the tokenizer lacks
        and (issubclass(c, PreTrainedTokenizerBase) or c.__module__.startswith("transformers.utils.dummy"))
        for c in known
    )
