"""`python -m tests.engine.wrapped`: policies wrapped by DDP and FSDP2 in two processes give what one process gives.

Each process scores a row of its own. Exit code 0 if log-probs, gradients and texts are those of a plain policy.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from prefopt.engine.policy import Policy
from prefopt.engine.scoring import Branch, MicroBatch
from tests.engine import tiny

PROCESSES = 2
ROWS = [tiny.records([(5, (4, 7)), (9, (3,))]), tiny.records([(6, (2, 5, 8))], seed=1)]
PROMPTS = [[3, 4, 5, 6], [7, 8]]


def ddp(policy: Policy) -> nn.Module:
    return nn.parallel.DistributedDataParallel(policy)


def shard_blocks(policy: Policy) -> nn.Module:
    """Embeddings and head belong to the root: they are gathered while the policy's forward runs, head included."""
    for layer in policy.causal.model.layers:
        fully_shard(layer)
    return fully_shard(policy)


def shard_head_apart(policy: Policy) -> nn.Module:
    """As accelerate does it: the head is gathered when it is called, which hooks on it do."""
    causal = policy.causal
    for part in (causal.model.embed_tokens, *causal.model.layers):
        fully_shard(part)
    fully_shard([causal.model.norm, causal.lm_head], reshard_after_forward=False)
    return fully_shard(policy)


def make(kind: str) -> Any:
    model = tiny.model("llama", dtype=torch.float64, tie_word_embeddings=kind == "tied")
    if kind == "lora":
        targets = ["q_proj", "down_proj", "lm_head"]
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            config = LoraConfig(task_type="CAUSAL_LM", target_modules=targets, init_lora_weights=False)
            model = get_peft_model(model, config).double()
    return model


def run(wrapped: Any, row: int) -> Tensor:
    layout = wrapped_policy(wrapped).layout.layout
    batch = MicroBatch.of([Branch(r.prompt, c) for r in ROWS[row] for c in r.completions], layout)
    out = batch.forward(wrapped)
    (out.sum * torch.arange(1.0, len(out.sum) + 1)).sum().backward()
    return out.stats.logp.detach()


def wrapped_policy(wrapped: Any) -> Policy:
    found = wrapped if isinstance(wrapped, Policy) else wrapped.module
    assert isinstance(found, Policy)
    return found


def gradients(policy: Policy) -> dict[str, Tensor]:
    grads = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    return {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in grads.items()}


def check(kind: str, wrap: Callable[[Policy], nn.Module], layout: str, rank: int) -> None:
    plain = Policy(make(kind), layout)
    logps = [run(plain, row) for row in range(PROCESSES)]
    wanted = {name: grad / PROCESSES for name, grad in gradients(plain).items()}
    texts = plain.generate(PROMPTS, max_new_tokens=4, eos_token_id=2, temperature=0)
    wrapped = wrap(Policy(make(kind), layout))
    torch.testing.assert_close(run(wrapped, rank), logps[rank], rtol=0, atol=1e-10)
    policy = wrapped_policy(wrapped)
    found = gradients(policy)
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-10)
    assert isinstance(policy, FSDPModule) == (wrap is not ddp)
    if wrap is not ddp:
        register_fsdp_forward_method(policy, "generate")
    assert policy.generate(PROMPTS, max_new_tokens=4, eos_token_id=2, temperature=0) == texts


def work(rank: int, store: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    for layout in ("tree", "padded"):
        for wrap in (ddp, shard_blocks, shard_head_apart):
            for kind in ("full", "tied", "lora"):
                if wrap is shard_head_apart and kind != "full":
                    continue
                check(kind, wrap, layout, rank)
    distributed.destroy_process_group()


def main() -> int:
    torch.set_num_threads(1)
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        workers = [fork.Process(target=work, args=(rank, str(Path(folder, "store")))) for rank in range(PROCESSES)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return max(abs(worker.exitcode or 0) for worker in workers)


if __name__ == "__main__":
    sys.exit(main())
