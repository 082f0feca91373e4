"""Runs on pairs with images: `torchrun ... -m tests.train.image_processes FOLDER RUN...`.

A run is a family of `tests.models.pictures` and what it is done with: `again` (activations are computed again), `fsdp`,
`padded`, `mixed` (every third record has an image: in steps 1 and 6 one process of two has none). It leaves
`FOLDER/<run>.json` (losses, wrapper, processes) and `FOLDER/<run>.safetensors` (the weights at the end, whole).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import distributed
from torch.distributed.tensor import DTensor

from prefopt.data.data_config import DataConfig
from prefopt.data.prepare import prepare
from prefopt.losses.registry import load
from prefopt.models.load import load_model, load_tokenizer
from prefopt.models.model_config import ModelConfig
from prefopt.plugin import Data
from prefopt.train import BatchConfig
from prefopt.train import train as learn
from tests.models import pictures

# Plain gradient descent keeps the differences of two ways to sum as small as they are.
HOW: dict[str, Any] = {"max_steps": 6, "learning_rate": 0.1, "lr_scheduler_type": "constant", "seed": 0, "optim": "sgd",
                       "logging_steps": 1}  # fmt: skip


def write(folder: Path) -> None:
    """Write the models and the data of all runs."""
    for family in pictures.FAMILIES:
        pictures.save(family, folder / family, scale=1.0)
    rows = pictures.write(folder, 12).read_text().splitlines()
    texts = [json.dumps({"prompt": "Which?", "chosen": "r", "rejected": "b"}) for _ in rows]
    mixed = [text if i % 3 else row for i, (row, text) in enumerate(zip(rows, texts, strict=True))]
    (folder / "mixed.jsonl").write_text("\n".join(mixed))


def train(run: str, folder: Path, out: Path) -> None:
    """Train, and leave the two files in `out`."""
    family, *wanted = run.split("+")
    config = ModelConfig(path=str(folder / family))
    tokenizer = load_tokenizer(config)
    file = folder / ("mixed.jsonl" if "mixed" in wanted else "pairs.jsonl")
    pairs = prepare(DataConfig(path=str(file), cache_dir=str(out / "cache")), tokenizer, Data.PAIRS).train
    options = HOW | {"activation_checkpointing": "again" in wanted, "fsdp": "fsdp" in wanted}
    layout = "padded" if "padded" in wanted else "tree"
    batch = BatchConfig(records=2 if "mixed" in wanted else 6, layout=layout)
    result = learn(load_model(config), load("dpo"), pairs, output_dir=out / run, batch=batch, tokenizer=tokenizer,
                   **options)  # fmt: skip
    made = result.trainer
    weights = {name: weight.detach() for name, weight in made.model.named_parameters()}
    whole = {n: (w.full_tensor() if isinstance(w, DTensor) else w).clone() for n, w in weights.items()}
    report = {
        "losses": [line["loss"] for line in made.state.log_history if "loss" in line],
        "wrapper": type(made.wrapped).__name__,
        "processes": made.args.world_size,
    }
    if made.accelerator.is_main_process:
        (out / f"{run}.json").write_text(json.dumps(report))
        save_file(whole, out / f"{run}.safetensors")


def main() -> int:
    torch.set_num_threads(1)
    for run in sys.argv[3:]:
        train(run, Path(sys.argv[1]), Path(sys.argv[2]))
    if distributed.is_initialized():
        distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
