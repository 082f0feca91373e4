"""Estimates peak memory by part, in bytes: what is held while the heaviest row goes forward and back.

weights      w bytes each (4 in float32)
gradients    one for each trainable weight
optimizer    two for each trainable weight under Adam
activations  what the heaviest row keeps for its backward
head         kept logits (at most 64 MiB), blocks of logits, and the gradient of the output matrix before it is added
reference    a live reference, if the loss needs one; on a CPU also the copy that measures the KL after training, which
             is loaded before the memory of training is returned
libraries    of the process before a model is there (on an accelerator: its context)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import prefopt.report.run_page
import prefopt.train.api  # noqa: F401 - as the line above: a run loads it, and `library_bytes` counts it
from prefopt.engine.forward import unwrap
from prefopt.engine.generation import generate
from prefopt.engine.head import BLOCK, KEPT
from prefopt.engine.policy import Policy
from prefopt.engine.scoring import Branch, MicroBatch
from prefopt.planning.schedule import Schedule

TOY_ROWS = (40, 64, 96, 128, 200, 256, 320, 400, 512, 640)  # tokens: each length has its own kernels
FRAGMENTATION = 0.25
CONTEXT = int(0.6e9)  # of CUDA with its libraries loaded
# States of each optimizer in bytes for each trainable weight of w bytes.
STATES = {"sgd": 0, "adagrad": 1, "rmsprop": 1, "lion": 1, "adafactor": 0}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Peak memory by part, in bytes."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    reference: int
    libraries: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    def gib(self) -> dict[str, float]:
        """GiB by part, and `total`."""
        return {name: round(value / 2**30, 4) for name, value in (asdict(self) | {"total": self.total}).items()}


@cache  # a later plan of the same process must not count what the first one loaded
def library_bytes() -> int:
    """Measure this process once all libraries of a run are loaded and used: a toy model takes a few steps.

    Kernels for matrix products are made at their first use, and libraries load parts of themselves then.
    """
    settings = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2
    )
    toy = Policy(LlamaForCausalLM(settings), "tree")
    optimizer = torch.optim.AdamW(toy.parameters(), fused=True)
    for length in TOY_ROWS:
        ids = np.arange(length, dtype=np.int32) % 256
        batch = MicroBatch.of([Branch(ids[: length // 2], ids[length // 2 :]), Branch(ids, ids[:9])], "tree")
        batch.forward(toy).sum.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    generate(toy.model, [[1, 2, 3]], max_new_tokens=2, eos_token_id=[-1], temperature=0)
    return int(psutil.Process().memory_info().rss)


def count_weights(model: Any) -> tuple[int, int, int]:
    """(bytes of all weights and buffers, bytes of the trainable ones, number of all weights); tied ones count once."""
    weights = list(model.parameters())
    held = sum(t.numel() * t.element_size() for t in [*weights, *model.buffers()])
    trainable = sum(p.numel() * p.element_size() for p in weights if p.requires_grad)
    return held, trainable, sum(p.numel() for p in weights)


def linear_weights(model: Any) -> int:
    """The number of weights in the layers' matrix products: all but embeddings, norms and biases."""
    causal = unwrap(model)
    apart = {id(p) for m in (causal.get_input_embeddings(), causal.get_output_embeddings()) for p in m.parameters()}
    return sum(p.numel() for p in causal.parameters() if p.dim() > 1 and id(p) not in apart)


def optimizer_bytes(optim: str, trainable: int) -> int:
    """The bytes of the optimizer's states; 8-bit optimizers keep one byte for each of float32's four."""
    name = str(getattr(optim, "value", optim))
    factor: int = next((factor for key, factor in STATES.items() if name.startswith(key)), 2)
    return int(factor * trainable // (4 if "8bit" in name else 1))


def head_bytes(model: Any, scored: int, device: str) -> int:
    """The bytes of projecting `scored` tokens onto the vocabulary and back."""
    causal = unwrap(model)
    head = causal.get_output_embeddings()
    vocab, hidden = head.weight.shape
    block = BLOCK.get(device, BLOCK["cuda"])
    kept: int = min(KEPT, scored * vocab) * 4
    blocks = 2 * min(max(block, 64 * scored), scored * vocab) * 4
    tables = [w for w in (head.weight, causal.get_input_embeddings().weight) if w.requires_grad]
    gradients = sum(w.numel() * w.element_size() for w in tables)
    return int(kept + blocks + gradients + 2 * scored * hidden * 4)


def peak_memory(
    model: Any, planned: Schedule, arguments: Any, *, kept: float, live_reference: bool, start_copy: bool,
    libraries: int,
) -> Memory:  # fmt: skip
    """Estimate the peak on this machine.

    Args:
        model: the policy.
        planned: the schedule of the run.
        arguments: `TrainingArguments`.
        kept: bytes that the heaviest row keeps for its backward.
        live_reference: whether the loss needs a reference model beside the policy.
        start_copy: whether a copy of the policy's start is loaded after training, to measure the KL to it.
        libraries: bytes of this process before the model was loaded.
    """
    device = arguments.device.type
    held, trainable, _ = count_weights(model)
    fragmentation = 1 + FRAGMENTATION * trainable / held if device == "cpu" and planned.several else 1.0
    return Memory(
        weights=held,
        gradients=trainable,
        optimizer=optimizer_bytes(arguments.optim, trainable),
        activations=int(kept * fragmentation),
        head=head_bytes(model, planned.heaviest_scored, device),
        reference=held * (live_reference + (start_copy and device == "cpu")),
        libraries=libraries if device == "cpu" else CONTEXT,
    )
