"""The loss that balances experts is the model's own on a plain forward of each completion, in both layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prefopt.engine.forward import Options
from prefopt.engine.layout import Layout
from prefopt.engine.policy import Policy
from prefopt.engine.scoring import Branch, MicroBatch
from prefopt.errors import UserError
from tests.engine import families, tiny

DATA = tiny.records([(5, [3, 1, 6]), (9, [4, 4]), (2, [7])])
BRANCHES = [Branch(r.prompt, c) for r in DATA for c in r.completions]


def own(model: Any) -> Tensor:
    """The model's loss on its own padded forward; the last token of a text is not fed."""
    texts = [np.concatenate((b.prompt, b.completion[:-1])) for b in BRANCHES]
    width = max(map(len, texts))
    ids = torch.tensor(np.array([np.pad(t, (0, width - len(t))) for t in texts]), dtype=torch.long)
    mask = torch.tensor([[1] * len(t) + [0] * (width - len(t)) for t in texts])
    loss: Tensor = model(ids, attention_mask=mask, output_router_logits=True).aux_loss
    return loss


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_the_loss_is_the_models_own(family: str, layout: Layout) -> None:
    model = families.model(family)
    want = own(model)
    (router,) = (n for n, _ in model.named_parameters() if n.endswith("layers.0.mlp.gate.weight"))
    weight = model.get_parameter(router)
    (gradient,) = torch.autograd.grad(want, [weight])
    with Policy(model, layout) as policy:
        whole = MicroBatch.of(BRANCHES, layout).forward(policy, Options(router=True)).stats.router
        assert whole is not None
        loss = whole.loss()
        (found,) = torch.autograd.grad(loss, [weight])
        parts = [MicroBatch.of(part, layout).forward(policy, Options(router=True)).stats.router
                 for part in (BRANCHES[:2], BRANCHES[2:])]  # fmt: skip
    want = want.detach()
    assert float(loss.detach()) == pytest.approx(float(want), rel=1e-5)
    torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-6)
    first, second = parts
    assert first is not None
    assert second is not None
    together = first.plus(second)
    parted, mean = first.loss(together) + second.loss(together), (first.loss() + second.loss()) / 2
    assert float(parted.detach()) == pytest.approx(float(want), rel=1e-5)
    assert float(mean.detach()) != pytest.approx(float(want), rel=1e-3)


def test_a_model_without_experts_is_refused() -> None:
    with (
        Policy(families.model("llama"), "tree") as policy,
        pytest.raises(UserError, match="gives no logits of a router"),
    ):
        MicroBatch.of(BRANCHES, "tree").forward(policy, Options(router=True))
