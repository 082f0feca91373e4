"""Part (b) of `gpu.py`: speed and memory of a DPO step, of prefopt, of padded transformers, and of TRL."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from growth import random_records
from memory import peak_gib
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt.data.tokens import TokenRecord
from prefopt.engine.policy import Policy
from prefopt.engine.scoring import Branch, MicroBatch
from prefopt.models.adapters import attach
from prefopt.models.peft_config import PeftConfig
from prefopt.worlds.build import tokenizer

BETA = 0.1
WARM_UP, TIMED = 2, 5  # steps


@dataclass(frozen=True)
class Size:
    """The sizes of a Llama of random weights; `lora`: its weights are frozen bfloat16 below adapters."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    lora: bool = False


SIZES = {
    "SmolLM2-135M": Size(576, 1536, 30, 9, 3, 49_152, tied=True),
    "1B": Size(2048, 8192, 16, 32, 8, 128_256, tied=True),
    "8B, LoRA": Size(4096, 14_336, 32, 32, 8, 128_256, tied=False, lora=True),
}
LENGTHS = {"prompt-heavy": (1024, 128), "completion-heavy": (128, 512)}  # tokens of the prompt, and of each completion
ROW = 8192  # tokens of a step, about


@dataclass(frozen=True)
class Case:
    """What is timed: a model, and `records` prompts with `completions` completions each."""

    size: str
    lengths: str
    completions: int
    prompt: int
    completion: int
    records: int

    @classmethod
    def of(cls, size: str, lengths: str, completions: int) -> Case:
        """A case whose step has about `ROW` tokens."""
        prompt, completion = LENGTHS[lengths]
        records = max(1, ROW // (prompt + completions * completion))
        return cls(size, lengths, completions, prompt, completion, records)

    @property
    def useful_tokens(self) -> int:
        """Tokens that carry information: every prompt once, no completion's last token."""
        return self.records * (self.prompt + self.completions * (self.completion - 1))

    def flops(self, size: Size) -> float:
        """Useful FLOPs of a step: forward, and backward (once the forward for frozen weights, else twice)."""
        kv = size.hidden * size.kv_heads // size.heads
        layer = 2 * size.hidden * size.hidden + 2 * size.hidden * kv + 3 * size.hidden * size.inner
        seen = self.prompt**2 / 2 + self.completions * (self.prompt * self.completion + self.completion**2 / 2)
        forward = 2 * size.layers * layer * self.useful_tokens + 4 * size.hidden * size.layers * seen * self.records
        head = 2 * size.hidden * size.vocabulary * self.records * self.completions * self.completion
        return (2 if size.lora else 3) * (forward + head)


def model_of(size: Size, device: torch.device) -> Any:
    """A model of these sizes on the device."""
    config = LlamaConfig(
        vocab_size=size.vocabulary, hidden_size=size.hidden, intermediate_size=size.inner,
        tie_word_embeddings=size.tied, num_hidden_layers=size.layers, num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads, max_position_embeddings=8192,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16 if size.lora else torch.float32)
    return attach(model, PeftConfig(method="lora"), seed=0) if size.lora else model


def objective(sums: Tensor, completions: int) -> Tensor:
    """DPO of the first completion of each prompt against the others, with a reference of 0. `sums` (records * K,)."""
    own = sums.view(-1, completions)
    return -F.logsigmoid(BETA * (own[:, :1] - own[:, 1:])).mean()


Step = Callable[[], None]


@contextmanager
def prefopt_step(model: Any, records: Sequence[TokenRecord], layout: str) -> Iterator[Step]:
    """A step of prefopt's engine in one row."""
    branches = [Branch(r.prompt, text) for r in records for text in r.completions]
    with Policy(model, layout) as policy:
        batch = MicroBatch.of(branches, policy.layout.layout)

        def step() -> None:
            sums = batch.forward(policy).sum
            objective(sums, len(records[0].completions)).backward()  # type: ignore[no-untyped-call]

        yield step


@contextmanager
def padded_step(model: Any, records: Sequence[TokenRecord]) -> Iterator[Step]:
    """A step of plain transformers with SDPA: a row for each completion, logits of the completion tokens."""
    device = next(model.parameters()).device
    texts = [(r.prompt, text) for r in records for text in r.completions]
    ids = [torch.tensor([*p.tolist(), *t.tolist()], device=device) for p, t in texts]
    batch = pad_sequence(ids, batch_first=True)
    mask = pad_sequence([torch.ones_like(i) for i in ids], batch_first=True)
    keep = max(len(t) for _, t in texts) + 1
    start = min(len(p) for p, _ in texts)

    def step() -> None:
        logits = model(input_ids=batch, attention_mask=mask, logits_to_keep=keep).logits[:, :-1].float()
        token = logits.log_softmax(-1).gather(-1, batch[:, 1 - keep :, None]).squeeze(-1)
        places = torch.arange(batch.shape[1] - keep + 1, batch.shape[1], device=device)
        scored = mask[:, 1 - keep :] * (places >= start)
        objective((token * scored).sum(-1), len(records[0].completions)).backward()  # type: ignore[no-untyped-call]

    yield step


def timed(model: Any, step: Step, device: torch.device, *, warm_up: int = WARM_UP, steps: int = TIMED) -> list[float]:
    """Seconds of whole steps, optimizer included, after the first ones."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
    found = []
    for _ in range(warm_up + steps):
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            step()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return found[warm_up:]


def measured(case: Case, size: Size, program: str, device: torch.device, rate: float, **steps: int) -> dict[str, Any]:
    """Pairs and tokens a second, peak memory and the share of the card's product rate of one program."""
    row: dict[str, Any] = {"size": case.size, "lengths": case.lengths, "completions": case.completions,
                           "records": case.records, "program": program}  # fmt: skip
    reset_peak(device)
    try:
        model = model_of(size, device)
        shapes = [(case.prompt, [case.completion] * case.completions)] * case.records
        records = random_records(shapes, size.vocabulary)
        steppers = {
            "prefopt": lambda: prefopt_step(model, records, "tree"),
            "prefopt, padded": lambda: prefopt_step(model, records, "padded"),
            "transformers, padded": lambda: padded_step(model, records),
        }
        if program == "TRL":
            seconds = median(trl_steps(model, case, device, **steps))
        else:
            with steppers[program]() as step:
                seconds = median(timed(model, step, device, **steps))
    except torch.OutOfMemoryError:
        return row | {"error": "out of memory"}
    except Exception as error:  # another program's: the other lines are measured all the same
        return row | {"error": f"{type(error).__name__}: {error}"[:300]}
    return row | {
        "step_s": seconds,
        "pairs_per_s": case.records * (case.completions - 1) / seconds,
        "useful_tokens_per_s": case.useful_tokens / seconds,
        "share_of_products": case.flops(size) / seconds / 1e12 / rate,
        "peak_gib": peak(device),
    }


def trl_steps(
    model: Any, case: Case, device: torch.device, *, warm_up: int = WARM_UP, steps: int = TIMED
) -> list[float]:
    """Seconds of TRL's steps on texts of the same lengths, padding-free and with Liger where installed."""
    from datasets import Dataset

    trl = import_module("trl")
    words = tokenizer()
    rng = np.random.default_rng(0)

    def text(n: int) -> str:
        return " ".join(words.convert_ids_to_tokens(rng.integers(4, len(words), n).tolist()))

    rows = [
        {"prompt": text(case.prompt - 1), **{side: f" {text(case.completion - 1)}" for side in ("chosen", "rejected")}}
        for _ in range(case.records * (warm_up + steps))
    ]
    flash = device.type == "cuda" and importlib.util.find_spec("flash_attn") is not None
    if flash:
        model.set_attn_implementation("flash_attention_2")
    clock = import_module("peers.job").StepClock()  # to mypy the file is `job`, as its neighbours import it
    with tempfile.TemporaryDirectory() as out:
        arguments = trl.DPOConfig(
            output_dir=out, per_device_train_batch_size=case.records, max_steps=warm_up + steps, max_length=None,
            beta=BETA, precompute_ref_log_probs=True, learning_rate=1e-6, save_strategy="no", report_to=[],
            disable_tqdm=True, gradient_checkpointing=False, bf16=device.type == "cuda", use_cpu=device.type == "cpu",
            padding_free=flash, use_liger_kernel=_has_liger(device),
        )  # fmt: skip
        trainer = trl.DPOTrainer(
            model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=words,
            callbacks=[clock.callback()],
        )  # fmt: skip
        trainer.train()
    return list(clock.step_s[warm_up:])


def _has_liger(device: torch.device) -> bool:
    return device.type == "cuda" and importlib.util.find_spec("liger_kernel") is not None


def product_rate(device: torch.device, *, size: int = 8192, repeats: int = 20) -> float:
    """TFLOP/s of square products in the precision of training, bfloat16 on CUDA, measured."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats + 3):
        began = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / median(seconds[3:]) / 1e12


def reset_peak(device: torch.device) -> None:
    """Forget the peak memory so far."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(device: torch.device) -> float:
    """GiB: of the card's allocator, or of the process on CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else peak_gib()
