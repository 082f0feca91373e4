"""Every loss through the real trainer: five steps, and the gradient that it applies is autograd's on the plugin."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from prefopt.data.tokens import TokenRecord
from prefopt.losses import load_class
from prefopt.plugin import Data
from prefopt.testing import example
from prefopt.testing.numbers import build, call
from prefopt.testing.samples import STATISTICS
from prefopt.train import BatchConfig
from tests.losses.names import OFFLINE
from tests.train import tiny

SIDES = {
    Data.PAIRS: ("chosen", "rejected"),
    Data.UNPAIRED: ("completion",),
    Data.LISTS: ("completions",),
    Data.DEMONSTRATIONS: ("chosen",),
}


def loss_of(name: str) -> Any:
    loss = example(load_class(name))
    return replace(loss, vocab_size=tiny.VOCAB) if hasattr(loss, "vocab_size") else loss


def records_of(kind: Data) -> list[TokenRecord]:
    if kind is not Data.LISTS:
        return tiny.records(kind, 8)
    return [record for record in tiny.records(kind, 40) if len(record.completions) == 3][:8]


def figures(policy: Any, referee: Any, record: TokenRecord, completion: Any, epsilon: float) -> dict[str, Tensor]:
    """(n,) of one completion, from plain forwards of both models: everything that a loss can ask for."""
    prompt, tokens = torch.tensor(record.prompt.tolist()), torch.tensor(completion.tolist())
    row = torch.cat([prompt, tokens])[None]

    def log_softmax(model: Any) -> Tensor:
        logits = model(input_ids=row, use_cache=False).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1)  # type: ignore[no-any-return]

    ours = log_softmax(policy)
    with torch.no_grad():
        theirs = log_softmax(referee)
    return {
        "token": ours.gather(1, tokens[:, None])[:, 0],
        "ref_token": theirs.gather(1, tokens[:, None])[:, 0],
        "log_sum_sq": (2 * ours).logsumexp(-1).detach(),
        "ref_entropy": -(theirs.exp() * theirs).sum(-1),
        "kl": (theirs.exp() * (theirs - ours)).sum(-1),
        "log_away": (ours + epsilon * (ours - theirs)).logsumexp(-1).detach(),
        "log_toward": (ours - epsilon * (ours - theirs)).logsumexp(-1).detach(),
    }


def numbers_of(loss: Any, feed: Any, policy: Any, referee: Any) -> dict[str, Tensor]:
    """The batch of all records, by the names of `prefopt.testing`."""
    kind = loss.needs.data
    fed = [feed[i] for i in range(len(feed))]
    sides: dict[str, list[Any]] = {}
    for record in fed:
        own = feed.own(record)
        epsilon = getattr(loss, "epsilon", 0.0)
        scored = [figures(policy, referee, record, completion, epsilon) for completion in record.completions]
        if kind is Data.LISTS:
            sides.setdefault("completions", []).append(scored)
            continue
        for side, one in zip(SIDES[kind], scored[:own], strict=False):
            sides.setdefault(side, []).append(one)
        if loss.needs.mismatched:
            sides.setdefault("mismatched", []).append(scored[own])
    numbers: dict[str, Tensor] = {"ids": torch.tensor([record.stable_int for record in fed])}
    if kind is Data.LISTS:
        lists = sides["completions"]
        numbers["completions"] = torch.stack([torch.stack([one["token"].sum() for one in row]) for row in lists])
        numbers["ref_completions"] = torch.stack(
            [torch.stack([one["ref_token"].sum() for one in row]) for row in lists]
        )
        numbers["num_tokens"] = torch.tensor([[len(one["token"]) for one in row] for row in lists])
        numbers["scores"] = torch.tensor([record.scores for record in fed], dtype=torch.float64)
        return numbers
    for side, rows in sides.items():
        lengths = "num_tokens" if side == "completion" else f"{side}_num_tokens"
        numbers[lengths] = torch.tensor([len(row["token"]) for row in rows])
        for name in ("token", *STATISTICS):
            numbers[f"{side}_{name}"] = pad_sequence([row[name] for row in rows], batch_first=True)
        numbers[f"ref_{side}_token"] = pad_sequence([row["ref_token"] for row in rows], batch_first=True)
    if kind is Data.UNPAIRED:
        numbers["desirable"] = torch.tensor([record.desirable for record in fed])
    if kind is Data.PAIRS:
        for place, side in enumerate(("chosen", "rejected")):
            numbers[f"{side}_score"] = torch.tensor([r.scores[place] for r in fed if r.scores], dtype=torch.float64)
        numbers["margin"] = numbers["chosen_score"] - numbers["rejected_score"]
        numbers["probability"] = numbers["margin"].sigmoid()
        numbers["tied"] = numbers["margin"] == 0
    return numbers


@pytest.mark.parametrize("name", OFFLINE)
def test_the_gradient_applied_is_that_of_the_loss(name: str, tmp_path: Path) -> None:
    loss, referee = loss_of(name), tiny.model(seed=1)
    data = records_of(loss.needs.data)
    policy = tiny.model()
    kept = tiny.run(
        loss,
        data,
        tmp_path,
        reference=referee,  # another model, so that no loss is at the special point of its step 0
        max_steps=5,
        batch=BatchConfig(records=8, max_tokens=64),  # several micro-batches a step
    )
    assert len(kept.losses) == 5
    assert all(math.isfinite(value) for value in kept.losses)
    numbers = numbers_of(loss, kept.trainer.sources["train"].feed, policy, tiny.model(seed=1))
    value = call(loss, build(loss.needs, numbers)).loss.mean()
    assert kept.losses[0] == pytest.approx(float(value.detach()), rel=1e-5, abs=1e-6)
    value.backward()
    largest = max(float(weight.grad.abs().max()) for weight in policy.parameters() if weight.grad is not None)
    assert largest > 0
    for key, weight in policy.named_parameters():
        torch.testing.assert_close(kept.gradients[0][key], weight.grad, rtol=1e-4, atol=1e-5 * largest)
