"""Plain DPO on a transformers model: a padded batch of chosen and rejected sequences, full logits, AdamW."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from job import Answer, Job, StepClock, read_pairs, serve

if TYPE_CHECKING:
    from torch import Tensor

BETA = 0.1


def run(job: Job) -> Answer:
    import torch
    import torch.nn.functional as F
    from torch.nn.utils.rnn import pad_sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert job.method == "dpo"
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(job.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0)
    began = time.perf_counter()

    def batch(pairs: list[dict[str, str]]) -> tuple[Tensor, Tensor, Tensor]:
        """(2 B, T) ids, attention mask, and mask of completion tokens."""
        ids, scored = [], []
        for side in ("chosen", "rejected"):
            for pair in pairs:
                tokens = [*tokenizer(pair["prompt"] + pair[side])["input_ids"], tokenizer.eos_token_id]
                prompt = len(tokenizer(pair["prompt"])["input_ids"])
                ids.append(torch.tensor(tokens))
                scored.append(torch.arange(len(tokens)) >= prompt)
        mask = pad_sequence([torch.ones_like(i) for i in ids], batch_first=True)
        return pad_sequence(ids, batch_first=True), mask, pad_sequence(scored, batch_first=True)

    def log_probs(ids: Tensor, mask: Tensor, scored: Tensor) -> Tensor:
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        token = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        total: Tensor = (token * scored[:, 1:]).sum(-1)
        return total

    pairs = read_pairs(job)
    parts = [
        [pairs[m : m + job.device_records] for m in range(s, s + job.records, job.device_records)]
        for s in range(0, job.records * job.steps, job.records)
    ]
    with torch.no_grad():
        reference = [[log_probs(*batch(part)) for part in step] for step in parts]
    clock, first = StepClock(), 0.0
    clock.start()
    for step, refs in zip(parts, reference, strict=True):
        optimizer.zero_grad()
        for part, ref in zip(step, refs, strict=True):
            chosen, rejected = (log_probs(*batch(part)) - ref).chunk(2)
            loss = -F.logsigmoid(BETA * (chosen - rejected)).sum() / job.records
            first += loss.item() if not clock.step_s else 0.0
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        clock.step()
    return Answer(step_s=clock.step_s, total_s=time.perf_counter() - began, loss=first)


if __name__ == "__main__":
    serve(run)
