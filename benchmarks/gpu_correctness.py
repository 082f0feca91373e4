"""Part (a) of `gpu.py`: trees and the head against a plain forward, gradients too, and generation against scoring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from prefopt.data.tokens import TokenRecord
from prefopt.engine.generation import sample
from prefopt.engine.policy import Policy
from prefopt.engine.scoring import Branch, MicroBatch, score
from prefopt.errors import PrefoptError
from prefopt.plugin import Data

PRECISIONS = ("float32", "tf32", "bf16")
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 32},
    "gemma2": {
        "head_dim": 32, "sliding_window": 32, "query_pre_attn_scalar": 32, "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    },
    "gpt_neox": {},
}  # fmt: skip
MARGIN = 2.0  # times the error that the plain forward of the same precision makes against float32
FLOOR = 1e-4  # nats a token, and relative error of gradients, below which nothing is judged
NEVER = -1  # no token ends a text: all have full length


def model_of(family: str, *, width: int = 128, layers: int = 4, vocabulary: int = 512) -> Any:
    """A model of random weights with what is special about its family."""
    config = AutoConfig.for_model(
        family, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=vocabulary, max_position_embeddings=1024, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, **FAMILIES[family],
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    return model.eval()


def branches_of(vocabulary: int, *, prompts: int = 3, each: int = 3, longest: int = 48) -> list[Branch]:
    """Completions of random tokens, several behind each prompt."""
    rng = np.random.default_rng(0)

    def tokens() -> Any:
        return rng.integers(3, vocabulary, int(rng.integers(2, longest)), dtype=np.int32)

    return [Branch(prompt, tokens()) for prompt in (tokens() for _ in range(prompts)) for _ in range(each)]


@contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Run products in a precision: float32, TF32 (CUDA only; elsewhere float32), or bfloat16 by autocast."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


Forward = Callable[[Any, Sequence[Branch]], list[Tensor]]


def plain(model: Any, branches: Sequence[Branch]) -> list[Tensor]:
    """Log-probs of each completion's tokens, one text at a time, from whole logits in float32."""
    found = []
    for branch in branches:
        ids = torch.tensor([*branch.prompt.tolist(), *branch.completion.tolist()], device=model.device)
        logits = model(input_ids=ids[None]).logits[0, len(branch.prompt) - 1 : -1].float()
        chosen = logits.log_softmax(-1).gather(-1, ids[len(branch.prompt) :, None])
        found.append(chosen.squeeze(-1))
    return found


def tree(model: Any, branches: Sequence[Branch]) -> list[Tensor]:
    """The same by the engine: one row of trees."""
    with Policy(model, "tree") as policy:
        found = MicroBatch.of(branches, "tree").forward(policy)
        padded = found.padded(found.stats.logp)
        return [padded[i, : len(branch.completion)] for i, branch in enumerate(branches)]


def measured(model: Any, forward: Forward, branches: Sequence[Branch]) -> tuple[Tensor, Tensor]:
    """(log-probs of all tokens, gradient of their mean) in float32 on the CPU."""
    model.zero_grad(set_to_none=True)
    found = torch.cat(forward(model, branches))
    found.mean().backward()  # type: ignore[no-untyped-call]
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return found.detach().float().cpu(), gradient.float().cpu()


def compared(family: str, device: torch.device, **size: int) -> list[dict[str, Any]]:
    """For each precision the largest error of a token and the relative error of the gradient, of trees and of plain."""
    model = model_of(family, **size).to(device)
    branches = branches_of(model.config.vocab_size)
    with precision("float32", device):
        exact, exact_gradient = measured(model, plain, branches)
    rows = []
    for name in PRECISIONS:
        row: dict[str, Any] = {"family": family, "precision": name}
        try:
            for program, forward in (("plain", plain), ("tree", tree)):
                with precision(name, device):
                    logps, gradient = measured(model, forward, branches)
                row[f"{program}_token"] = float((logps - exact).abs().max())
                row[f"{program}_gradient"] = float((gradient - exact_gradient).norm() / exact_gradient.norm())
            row["ok"] = all(
                row[f"tree_{part}"] <= max(FLOOR, MARGIN * row[f"plain_{part}"]) for part in ("token", "gradient")
            )
            row["sampler_ratio"] = sampled_against_scored(model, name, device)
        except (PrefoptError, RuntimeError) as error:
            row |= {"ok": False, "error": f"{type(error).__name__}: {error}"[:300]}
        rows.append(row)
    return rows


def sampled_against_scored(model: Any, name: str, device: torch.device, *, texts: int = 8, new: int = 16) -> float:
    """The largest |ratio - 1| of a token's probability when it is drawn and when it is scored."""
    rng = np.random.default_rng(1)
    prompt = rng.integers(3, model.config.vocab_size, 24, dtype=np.int32)
    with precision(name, device), Policy(model, "tree") as policy:
        drawn = sample(policy.model, [prompt.tolist()] * texts, rng.random((texts, new)), eos_token_id=NEVER)
        completions = tuple(np.array(text.tokens, np.int32) for text in drawn)
        record = TokenRecord(id="0", kind=Data.PROMPTS, prompt=prompt, completions=completions)
        (scored,) = score(policy, [record], tokens=True)
    assert scored.token is not None
    apart = [text.logps - token for text, token in zip(drawn, scored.token, strict=True)]
    return float(max(np.abs(np.expm1(part)).max() for part in apart))
