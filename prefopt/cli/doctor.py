"""`prefopt doctor`: shows versions and what this machine supports."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from prefopt import __version__
from prefopt.cli.arguments import Parser
from prefopt.common.cache import cache_dir
from prefopt.common.escaping_console import Console, Table
from prefopt.common.json_output import print_json
from prefopt.common.versions import version_of
from prefopt.errors import PrefoptError

# What each optional package is for, and how to install it.
OPTIONAL = {
    "peft": ("LoRA and other adapters", "prefopt-zoo[peft]"),
    "bitsandbytes": ("quantized base models (QLoRA), on CUDA", "bitsandbytes"),
    "wandb": ("tracking=wandb", "prefopt-zoo[wandb]"),
    "tensorboard": ("tracking=tensorboard", "prefopt-zoo[tensorboard]"),
    "gguf": ("models from GGUF files", "gguf"),
    "trl": ("parity tests and benchmarks", "prefopt-zoo[peers]"),
}
CORE = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "hydra-core", "numpy")
ENVIRONMENT = ("PREFOPT_CACHE", "PREFOPT_MALLOC", "PREFOPT_MATMUL", "PREFOPT_TRACEBACK", "HF_HOME", "HF_HUB_OFFLINE",
               "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "RANK", "WORLD_SIZE", "LD_PRELOAD")  # fmt: skip
MIN_FREE_GIB = 5.0  # on the disk of the working directory


def main(argv: list[str]) -> int:
    """Print what was found, as tables or as JSON."""
    parser = Parser(prog="prefopt doctor", description="Show versions and what this machine supports.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    found = examine()
    if args.json:
        print_json(found, indent=1)
    else:
        _show(found)
    return 0


def examine() -> dict[str, Any]:
    """Collect everything that `prefopt doctor` shows, as JSON values."""
    import torch
    from huggingface_hub.constants import HF_HUB_CACHE

    from prefopt.engine.cpu import available

    cuda = torch.cuda.is_available()
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count() if cuda else 0)]
    found = {
        "versions": {"prefopt": __version__, "python": platform.python_version(),
                     **{package: version_of(package) for package in CORE}},
        "machine": _machine(torch.get_num_threads()),
        "devices": [{"name": d.name, "memory_gib": round(d.total_memory / 2**30, 1),
                     "capability": f"{d.major}.{d.minor}"} for d in devices],
        "usable": {
            "cuda": cuda,
            "mps": torch.backends.mps.is_available(),
            "bf16": _trains_in_bf16(),
            "flex_attention": cuda and find_spec("triton") is not None,  # it has no backward on a CPU
            "fast_cpu_products": available(),
            "tcmalloc": "tcmalloc" in os.environ.get("LD_PRELOAD", ""),
            "distributed": torch.distributed.is_available(),
        },
        "optional": {name: version_of(name) for name in OPTIONAL},
        "caches": _caches(Path(HF_HUB_CACHE)),
        "environment": {name: os.environ[name] for name in sorted(ENVIRONMENT) if name in os.environ},
    }  # fmt: skip
    return {**found, "notes": _notes(found)}


def _machine(threads: int) -> dict[str, Any]:
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(Path.cwd())
    return {
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "memory_gib": round(memory.total / 2**30, 1),
        "memory_free_gib": round(memory.available / 2**30, 1),
        "disk_free_gib": round(disk.free / 2**30, 1),
    }


def _trains_in_bf16() -> bool:
    """Whether `trainer.bf16=true` works: it is tried on one layer."""
    import torch

    from prefopt.train.arguments import autocast, training_arguments

    try:
        with TemporaryDirectory() as unused:
            arguments = training_arguments(unused, seed=0, records=1, bf16=True)
        layer = torch.nn.Linear(8, 8).to(arguments.device)
        with autocast(arguments):
            total = layer(torch.ones(1, 8, device=arguments.device)).sum()
        total.backward()
    except (PrefoptError, RuntimeError):
        return False
    return True


def _caches(hub: Path) -> dict[str, Any]:
    root = cache_dir()
    parts = {part.name: _size(part) for part in sorted(root.iterdir()) if part.is_dir()} if root.is_dir() else {}
    return {
        "prefopt": {"folder": str(root), "gib": round(sum(parts.values()) / 2**30, 2),
                    "parts_gib": {name: round(size / 2**30, 2) for name, size in parts.items()}},
        "hub": {"folder": str(hub), "gib": round(_size(hub) / 2**30, 2)},
    }  # fmt: skip


def _size(folder: Path) -> int:
    """The bytes of all files in a folder; links are not followed."""
    total = 0
    for base, _, files in os.walk(folder):
        for name in files:
            try:
                status = os.lstat(os.path.join(base, name))
            except OSError:  # deleted meanwhile
                continue
            total += status.st_size
    return total


def _notes(found: dict[str, Any]) -> list[str]:
    """Advice on what was found."""
    notes = []
    machine, usable = found["machine"], found["usable"]
    if not usable["cuda"] and not usable["mps"]:
        notes.append("no accelerator: models of up to a few hundred million weights can be trained; see `prefopt plan`")
    if usable["cuda"] and not usable["bf16"]:
        notes.append("trainer.bf16=true does not work on this GPU: use trainer.fp16=true")
    if machine["disk_free_gib"] < MIN_FREE_GIB:
        notes.append(f"only {machine['disk_free_gib']} GiB of disk are free; `prefopt reference prune` frees some")
    if machine["threads"] > machine["cores"]:
        notes.append(f"torch uses {machine['threads']} threads on {machine['cores']} cores: set OMP_NUM_THREADS")
    if found["optional"]["peft"] is None:
        notes.append("LoRA needs peft: `pip install 'prefopt-zoo[peft]'`")
    return notes


def _cell(value: Any) -> str:
    if value is None:
        return "not installed"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _show(found: dict[str, Any]) -> None:
    console = Console(highlight=False, markup=False)

    def section(title: str, rows: dict[str, Any]) -> None:
        table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
        table.add_column(min_width=18)
        table.add_column(overflow="fold")
        for name, value in rows.items():
            table.add_row(name, _cell(value))
        console.print(table)
        console.print()

    section("versions", found["versions"])
    section("machine", {k.replace("_", " "): v for k, v in found["machine"].items()})
    for device in found["devices"]:
        section("device", device)
    section("usable", {k.replace("_", " "): v for k, v in found["usable"].items()})
    optional = {}
    for name, installed in found["optional"].items():
        use, package = OPTIONAL[name]
        optional[name] = f"{installed} ({use})" if installed else f"no ({use}: pip install '{package}')"
    section("optional", optional)
    caches = {name: f"{about['gib']} GiB in {about['folder']}" for name, about in found["caches"].items()}
    parts = {f"  {name}": f"{gib} GiB" for name, gib in found["caches"]["prefopt"]["parts_gib"].items()}
    section("caches", caches | parts)
    for note in found["notes"]:
        console.print(f"note: {note}")
