"""A tiny model, records of every kind, and runs that keep what the tests look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from prefopt.data.tokens import TokenRecord
from prefopt.plugin import Data, Loss
from prefopt.train import BatchConfig, PreferenceTrainer, build

VOCAB = 61
CORE = ("sft", "dpo", "ipo", "ipo_sum", "kto", "orpo", "simpo")


def model(seed: int = 0, dtype: torch.dtype = torch.float64, vocab: int = VOCAB, **settings: Any) -> LlamaForCausalLM:
    """In float64; its norms compute in float32, so log-probs are good to about 1e-7."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        **{"max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, **settings},
    )
    causal = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in causal.parameters():
            weight.mul_(4.0) if weight.ndim > 1 else None  # or all texts would be about as likely
    return causal.to(dtype)


def records(kind: Data, n: int, seed: int = 0, *, weights: bool = False, level: bool = False) -> list[TokenRecord]:
    """Random records; every third has the prompt of the one before. Lists have 2 to 4 completions.

    `weights`: of 1/2, 1 and 2, else 1. `level`: prompts of 4 tokens and completions of 12 together, all prompts
    different, else of any length.
    """
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> Any:
        return rng.integers(3, VOCAB, rng.integers(low, high + 1)).astype(np.int32)

    def texts(count: int) -> tuple[Any, ...]:
        if not level:
            return tuple(ids(1, 8) for _ in range(count))
        cuts = np.sort(rng.choice(np.arange(1, 12), count - 1, replace=False))
        return tuple(np.split(ids(12, 12), cuts))

    made: list[TokenRecord] = []
    for i in range(n):
        count = {Data.PAIRS: 2, Data.LISTS: int(rng.integers(2, 5))}.get(kind, 1)
        scores = rng.permutation(count) / 4 + 0.1
        if kind is Data.PAIRS:
            scores = np.sort(scores)[::-1]
        made.append(
            TokenRecord(
                id=f"{kind.value}-{i}",
                kind=kind,
                prompt=ids(4, 4) if level else made[-1].prompt if i % 3 == 2 else ids(2, 6),
                completions=texts(count),
                desirable=bool(i % 2) if kind is Data.UNPAIRED else None,
                scores=tuple(scores.tolist()) if kind in (Data.PAIRS, Data.LISTS) else None,
                weight=float(rng.choice([0.5, 1.0, 2.0])) if weights else 1.0,
            )
        )
    return made


@dataclass
class Run(TrainerCallback):
    """What a run did: the loss of each step, its gradients before they were applied, weights after the last."""

    trainer: Any = None
    gradients: list[dict[str, Tensor]] = field(default_factory=list)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    @property
    def logs(self) -> list[dict[str, float]]:
        return [entry for entry in self.trainer.state.log_history if "learning_rate" in entry]

    @property
    def losses(self) -> list[float]:
        return [entry["loss"] for entry in self.logs]

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self.trainer.model.named_parameters()}


OPTIONS: dict[str, Any] = {"use_cpu": True, "learning_rate": 1e-2, "warmup_steps": 0, "max_grad_norm": 0.0}


def make(
    loss: Loss, data: Sequence[TokenRecord], folder: Path, policy: Any = None, **options: Any
) -> PreferenceTrainer:
    """`build` with the settings of the tests."""
    options.setdefault("batch", BatchConfig(records=16))
    options.setdefault("store", folder / "reference")
    return build(model() if policy is None else policy, loss, data, output_dir=folder, **OPTIONS | options)


def run(
    loss: Loss, data: Sequence[TokenRecord], folder: Path, policy: Any = None, *, resume: Path | None = None,
    **options: Any,
) -> Run:  # fmt: skip
    """A run of 2 steps, unless `options` say otherwise."""
    kept = Run()
    callbacks = [*options.pop("callbacks", ()), kept]
    kept.trainer = make(loss, data, folder, policy, callbacks=callbacks, **{"max_steps": 2} | options)
    kept.trainer.train(resume)
    return kept


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest difference of two sets of tensors."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).detach().abs().max()) for name in one)


def plain_logps(causal: Any, prompt: Any, completion: Any) -> Tensor:
    """(n,) log-probs of one completion: one unpadded forward of the model's own, a plain log-softmax."""
    tokens = torch.from_numpy(np.concatenate((prompt, completion)).astype(np.int64))[None]
    logits = causal(input_ids=tokens, use_cache=False).logits[0, len(prompt) - 1 : -1]
    logp: Tensor = logits.log_softmax(-1).gather(1, tokens[0, len(prompt) :, None])[:, 0]
    return logp
