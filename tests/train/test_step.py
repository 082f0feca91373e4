"""The gradient that is applied is that of the plugin on plain log-probs, by autograd, whatever the micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prefopt.data.tokens import TokenRecord
from prefopt.losses.registry import load
from prefopt.plugin import Data, DemoLogps, ListLogps, Logps, Needs, PairLogps, UnpairedLogps
from prefopt.testing.numbers import call
from prefopt.train import BatchConfig, Feed
from tests.engine import families
from tests.train import tiny


def _side(policy: Any, reference: Any, texts: Sequence[tuple[Any, Any]]) -> Logps:
    """Log-probs of (prompt, completion) texts, one plain forward each."""
    token = [tiny.plain_logps(policy, *text) for text in texts]
    with torch.no_grad():
        ref = [tiny.plain_logps(reference, *text) for text in texts]

    def padded(rows: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    return Logps(
        sum=torch.stack([row.sum() for row in token]),
        num_tokens=torch.tensor([len(row) for row in token]),
        ref_sum=torch.stack([row.sum() for row in ref]),
        token=padded(token),
        ref_token=padded(ref),
    )


def _by_hand(policy: Any, reference: Any, data: Sequence[TokenRecord], needs: Needs) -> tuple[Any, Tensor]:
    """What the loss is called on, and the weight of each example."""
    fed = Feed(data, needs, whole=True, seed=0)

    def side(pick: Any) -> Logps:
        return _side(policy, reference, [(r.prompt, c) for r in fed for c in pick(r)])

    weights = [r.weight for r in fed for _ in range(fed.own(r) if needs.data is Data.UNPAIRED else 1)]
    ids = torch.tensor([r.stable_int for r in fed])
    if needs.data is Data.PAIRS:
        chosen, rejected = side(lambda r: r.completions[:1]), side(lambda r: r.completions[1:])
        return PairLogps(chosen=chosen, rejected=rejected, ids=ids), torch.tensor(weights)
    if needs.data is Data.DEMONSTRATIONS:
        return DemoLogps(chosen=side(lambda r: r.completions[:1]), ids=ids), torch.tensor(weights)
    if needs.data is Data.UNPAIRED:
        labels = [r.desirable if r.kind is Data.UNPAIRED else k == 0 for r in fed for k in range(fed.own(r))]
        return UnpairedLogps(
            completion=side(lambda r: r.completions[: fed.own(r)]),
            desirable=torch.tensor(labels),
            mismatched=side(lambda r: r.completions[fed.own(r) :]) if needs.mismatched else None,
        ), torch.tensor(weights)
    scores = torch.tensor([r.scores for r in fed])
    flat = side(lambda r: r.completions)
    assert flat.ref_sum is not None
    lists = Logps(
        sum=flat.sum.view_as(scores),
        num_tokens=flat.num_tokens.view_as(scores),
        ref_sum=flat.ref_sum.view_as(scores),
    )
    mask = torch.ones_like(scores, dtype=torch.bool)
    return ListLogps(completions=lists, scores=scores, mask=mask, ids=ids), torch.tensor(weights)


@pytest.mark.parametrize("max_tokens", [4096, 60])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, Data.PAIRS) for name in tiny.CORE),
        ("kto", Data.UNPAIRED),
        ("aot", Data.PAIRS),
        ("ld_dpo", Data.PAIRS),
        ("plackett_luce", Data.LISTS),
        ("bco", Data.PAIRS),
    ],
    ids=lambda value: getattr(value, "value", value),
)
def test_applied_gradient_is_autograd_on_plain_log_probs(
    name: str, kind: Data, max_tokens: int, tmp_path: Path
) -> None:
    loss = load(name)
    data = tiny.records(kind, 12, weights=True)
    if kind is Data.LISTS:
        data = [r for r in tiny.records(kind, 60, weights=True) if len(r.completions) == 3][:12]
    reference, policy = tiny.model(seed=1), tiny.model()
    config = BatchConfig(records=12, max_tokens=max_tokens)
    kept = tiny.run(loss, data, tmp_path, policy, reference=reference, batch=config, max_steps=1)
    (batch,) = kept.trainer.shares("train")
    assert (len(batch.work) > 1) == (max_tokens == 60)

    plain = tiny.model()
    logps, weights = _by_hand(plain, reference, data, loss.needs)
    value = (call(loss, logps).loss * weights).sum() / len(weights)
    value.backward()
    wanted = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    assert kept.losses[0] == pytest.approx(float(value.detach()), rel=1e-5)
    size = max(float(g.abs().max()) for g in wanted.values())
    assert tiny.apart(kept.gradients[0], wanted) < 1e-5 * size


@pytest.mark.parametrize("name", ["dpo", "aot"])
def test_the_loss_of_a_router_is_that_of_the_global_batch(name: str, tmp_path: Path) -> None:
    """In any split; `loss` stays the method's own."""
    data = tiny.records(Data.PAIRS, 8, level=True)
    options: dict[str, Any] = {"max_steps": 1, "router_aux_loss": 0.5}

    def run(folder: str, max_tokens: int, **given: Any) -> tiny.Run:
        batch = BatchConfig(records=8, max_tokens=max_tokens)
        return tiny.run(load(name), data, tmp_path / folder, experts(), batch=batch, **options | given)

    whole, split, without = run("whole", 4096), run("split", 40), run("without", 4096, router_aux_loss=0.0)
    assert tiny.apart(whole.gradients[0], split.gradients[0]) < 1e-5
    gate = "model.layers.0.mlp.gate.weight"
    assert float((whole.gradients[0][gate] - without.gradients[0][gate]).abs().max()) > 1e-4
    assert whole.losses == pytest.approx(without.losses, rel=1e-6)
    assert whole.logs[0]["router_aux_loss"] == pytest.approx(split.logs[0]["router_aux_loss"], rel=1e-6)


def experts() -> Any:
    """A tiny mixture of experts, whose products torch has in float32 at most."""
    return families.model("mixtral")
