"""Measures how one step of TRL's trainers, and of prefopt, moves when a global batch comes in 1, 2 or 4 micro-batches.

    python benchmarks/batch_split.py

A tiny model in float32 takes one step of plain SGD at learning rate 1 without clipping, so the change of its weights is
the gradient. The reference is another model, since at policy = reference little is coupled. The data, their order and
the seeds are the same each time; only `per_device_train_batch_size` and `gradient_accumulation_steps` change, and of
prefopt `batch.max_tokens`. Writes benchmarks/results/batch_split.json, for docs/errata.md; `--prefopt` measures
prefopt's rows alone.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import json
import os
import random
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
RESULTS = Path(__file__).parent / "results" / "batch_split.json"
BATCH = 8
PARTS = (1, 2, 4)
LEAST = 0.01  # a loss below, such as that of advantages that sum to 0, has no relative change
WORDS = [
    *("the", "a", "cat", "dog", "bird", "sat", "ran", "sang", "on", "under"),
    *("near", "mat", "tree", "house", "fast", "slow", "red", "blue", "big", "small"),
]


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}, "<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", bos_token="<eos>"
    )


def model(seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=3 + len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=1,
    )  # fmt: skip
    built = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in built.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    return built


def texts() -> list[dict[str, str]]:
    """One global batch of pairs of unlike lengths."""
    draw = random.Random(14)
    return [
        {
            "prompt": " ".join(draw.choices(WORDS, k=3)) + " ",
            "chosen": " ".join(draw.choices(WORDS, k=draw.randint(1, 12))),
            "rejected": " ".join(draw.choices(WORDS, k=draw.randint(1, 12))),
        }
        for _ in range(BATCH)
    ]


def rows(kind: str) -> list[dict[str, Any]]:
    pairs = texts()
    if kind == "pairs":
        return pairs
    if kind == "prompts":
        return [{"prompt": pair["prompt"]} for pair in pairs]
    if kind == "demonstrations":
        return [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs]
    sides = ("chosen", "rejected")
    return [
        {"prompt": pair["prompt"], "completion": pair[sides[i % 2]], "label": i % 2 == 0}
        for i, pair in enumerate(pairs)
    ]


def trainer_names() -> dict[str, tuple[str, str, str, dict[str, Any]]]:
    """Row of the table -> (module, prefix of the class names, kind of rows, settings)."""
    sampled = {"num_generations": 4, "max_completion_length": 8, "temperature": 1.0}
    return {
        "DPO, `sigmoid`": ("trl", "DPO", "pairs", {"loss_type": ["sigmoid"], "beta": 0.1}),
        "DPO, `aot`": ("trl", "DPO", "pairs", {"loss_type": ["aot"], "beta": 0.1}),
        "DPO, `sigmoid` and `sft`": ("trl", "DPO", "pairs", {"loss_type": ["sigmoid", "sft"], "beta": 0.1}),
        "KTO": ("trl", "KTO", "unpaired", {"beta": 0.1}),
        "CPO, `sigmoid`": ("trl.experimental.cpo", "CPO", "pairs", {"beta": 0.1}),
        "CPO, `simpo`, no likelihood": (
            "trl.experimental.cpo", "CPO", "pairs", {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0}
        ),
        "ORPO": ("trl.experimental.orpo", "ORPO", "pairs", {"beta": 0.1}),
        "BCO": ("trl.experimental.bco", "BCO", "unpaired", {"beta": 0.1}),
        "SFT": ("trl", "SFT", "demonstrations", {}),
        "GRPO, `dapo`": ("trl", "GRPO", "prompts", {**sampled, "loss_type": "dapo"}),
        "GRPO, `grpo`": ("trl", "GRPO", "prompts", {**sampled, "loss_type": "grpo"}),
        "RLOO": ("trl", "RLOO", "prompts", {**sampled, "beta": 0.0}),
    }  # fmt: skip


def longest(completions: list[str], **kwargs: Any) -> list[float]:
    """A reward that differs within every group."""
    return [float(len(text.split())) + 0.1 * text.count("cat") for text in completions]


def step(module: str, prefix: str, kind: str, settings: dict[str, Any], parts: int) -> tuple[float, torch.Tensor]:
    """The logged loss and the change of all weights, after one step of the batch in so many parts."""
    from datasets import Dataset

    library = importlib.import_module(module)
    policy, before = model(1), torch.cat([w.detach().flatten() for w in model(1).parameters()])
    common: dict[str, Any] = {
        "per_device_train_batch_size": BATCH // parts, "gradient_accumulation_steps": parts, "max_steps": 1,
        "learning_rate": 1.0, "lr_scheduler_type": "constant", "optim": "sgd", "max_grad_norm": 0.0, "seed": 7,
        "logging_steps": 1, "report_to": "none", "save_strategy": "no", "use_cpu": True, "bf16": False,
        "gradient_checkpointing": False, "disable_tqdm": True,
    }  # fmt: skip
    more: dict[str, Any] = {"reward_funcs": longest} if kind == "prompts" else {}
    if prefix in ("DPO", "KTO", "BCO"):
        more["ref_model"] = model(2)
    with tempfile.TemporaryDirectory() as folder:
        trainer = getattr(library, f"{prefix}Trainer")(
            model=policy,
            args=getattr(library, f"{prefix}Config")(output_dir=folder, **common, **settings),
            train_dataset=Dataset.from_list(rows(kind)),
            processing_class=tokenizer(),
            **more,
        )
        trainer.train()
    loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    return loss, torch.cat([w.detach().flatten() for w in policy.parameters()]) - before


OURS: dict[str, dict[str, Any]] = {
    "dpo": {}, "aot": {"beta": 0.1}, "irpo": {"alpha": 1.0}, "kto": {}, "cpo": {}, "simpo": {}, "orpo": {}, "bco": {},
    "sft_token_mean": {}, "dr_dpo": {}, "beta_dpo": {}, "epsilon_dpo": {"epsilon": 0.05},
}  # fmt: skip


def token_records(kind: Any) -> list[Any]:
    """The same texts in tokens, the closing token included."""
    from prefopt.data.tokens import TokenRecord
    from prefopt.plugin import Data

    words = tokenizer()

    def ids(text: str, *end: int) -> Any:
        return np.array([*words(text)["input_ids"], *end], dtype=np.int32)

    made = []
    for i, pair in enumerate(texts()):
        sides = [ids(pair[side], 1) for side in ("chosen", "rejected")]
        given: dict[str, Any] = {"completions": tuple(sides)}
        if kind is Data.UNPAIRED:
            given = {"completions": (sides[i % 2],), "desirable": i % 2 == 0}
        elif kind is Data.DEMONSTRATIONS:
            given = {"completions": (sides[0],)}
        made.append(TokenRecord(id=str(i), kind=kind, prompt=ids(pair["prompt"]), **given))
    return made


def own_step(name: str, settings: dict[str, Any], parts: int) -> tuple[float, torch.Tensor]:
    """As `step`, by prefopt: the largest `max_tokens` at which the batch comes in so many parts."""
    from prefopt.engine.packing import Packer
    from prefopt.losses.registry import load
    from prefopt.train import BatchConfig, Feed, build

    loss: Any = load(name, **settings)
    records = token_records(loss.needs.data)
    lengths = Feed(records, loss.needs, whole=False, seed=7).lengths()
    widest = BATCH * int(lengths.tokens("padded").max())
    limit = next(
        tokens
        for tokens in range(widest, 0, -1)
        if len(Packer(lengths, max_tokens=tokens, layout="padded").pack(np.arange(BATCH))[0]) == parts
    )
    before = torch.cat([w.detach().flatten() for w in model(1).parameters()])
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(
            model(1), loss, records, output_dir=folder, store=Path(folder), reference=model(2), seed=7, use_cpu=True,
            batch=BatchConfig(records=BATCH, max_tokens=limit, layout="padded"), max_steps=1, learning_rate=1.0,
            lr_scheduler_type="constant", optim="sgd", max_grad_norm=0.0, warmup_steps=0,
        )  # fmt: skip
        (share,) = trainer.shares("train")
        assert len(share.work) == parts
        trainer.train(None)
    value = next(entry["loss"] for entry in trainer.state.log_history if "learning_rate" in entry)
    return value, torch.cat([w.detach().flatten() for w in trainer.model.parameters()]) - before


def moved(run: Callable[[int], tuple[float, torch.Tensor]]) -> dict[str, dict[str, float]]:
    """Changes against the undivided batch, relative to it: of the loss, and of the gradient by its norm."""
    loss, gradient = run(1)
    found: dict[str, dict[str, float]] = {"loss": {}, "gradient": {}}
    for parts in PARTS[1:]:
        other_loss, other = run(parts)
        found["loss"][str(parts)] = abs(other_loss - loss) / max(abs(loss), LEAST)
        found["gradient"][str(parts)] = float((other - gradient).norm() / gradient.norm())
    return found


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prefopt", action="store_true", help="keep the rows of TRL as they were measured")
    alone = parser.parse_args().prefopt
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if alone else {"trainers": {}, "absent": {}}
    results["prefopt"] = {}
    for name, settings in OURS.items():
        results["prefopt"][name] = moved(partial(own_step, name, settings))
        print(name, results["prefopt"][name], flush=True)
    for name, (module, prefix, kind, settings) in {} if alone else trainer_names().items():
        try:
            results["trainers"][name] = moved(partial(step, module, prefix, kind, settings))
        except (ImportError, AttributeError) as error:
            results["absent"][name] = str(error)
        print(name, results["trainers"].get(name) or results["absent"][name], flush=True)
    packages = ("trl", "transformers", "torch")
    results["versions"] = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    results["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
