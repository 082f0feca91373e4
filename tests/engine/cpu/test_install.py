"""All CPU kernels together change no log-prob and no gradient beyond rounding, and leave nothing behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prefopt.engine.cpu import dense_attention, install, matmul
from prefopt.engine.cpu.kernels import is_kernel
from prefopt.engine.gates import LayoutVerdict
from prefopt.engine.policy import Policy
from prefopt.engine.scoring import Branch, MicroBatch
from tests.engine import families, tiny

DATA = tiny.records([(40, (24, 20)), (33, (27, 26))])  # in float64, eager masks of whole rows give NaN
BRANCHES = [Branch(r.prompt, c) for r in DATA for c in r.completions]


@pytest.fixture(autouse=True)
def every_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of any size, whoever made the processor."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this build of torch has no oneDNN")
    for module in (matmul, dense_attention):
        monkeypatch.setattr(module, "available", lambda: True)
    monkeypatch.setattr(matmul, "_SMALL", 0)
    monkeypatch.setattr(dense_attention, "_FEW", 1)
    monkeypatch.setattr(dense_attention, "_BLOCK", 16)


def run(model: Any, layout: Any) -> dict[str, Tensor]:
    """Per-token log-probs, and the gradient of every weight, by name."""
    model.zero_grad()
    with Policy(model, LayoutVerdict(layout, "of the test")) as policy:
        out = MicroBatch.of(BRANCHES, layout).forward(policy)
        out.sum.sum().backward()
    found = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    return found | {"log-probs": out.stats.logp.detach().double()}


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3", "gpt2"])
def test_no_result_changes_beyond_rounding(family: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels add the same float32 terms in another order than torch: both are as far from float64.

    Each error is a sum of roundings with random signs, so the larger of two is within three times the smaller, unless
    both are a few units in the last place of the largest value, 1.2e-7: twenty of them are the floor.
    """
    exact = run(families.model(family, dtype=torch.float64), layout)
    model = families.model(family)
    with install(model) as kernels:
        assert kernels.modules
    fast = run(model, layout)
    for module in (matmul, dense_attention):
        monkeypatch.setattr(module, "available", lambda: False)
    monkeypatch.setattr("prefopt.engine.policy.install", lambda model: Nothing())
    plain = run(families.model(family), layout)
    assert fast.keys() == plain.keys() == exact.keys()
    for name, value in exact.items():
        error, allowed = (fast[name] - value).abs().max(), (plain[name] - value).abs().max()
        assert error <= 3 * allowed + 20 * 1.2e-7 * value.abs().max(), name


class Nothing:
    """No kernels."""

    def remove(self) -> None:
        pass


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_removing_leaves_nothing_behind(family: str) -> None:
    model = families.model(family)
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    with install(model) as kernels:
        assert kernels.modules
        assert all(is_kernel(module) for module in kernels.modules)
        with install(model) as second:  # everything is taken
            assert not second.modules
        assert all(is_kernel(module) for module in kernels.modules)
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before


def test_a_forward_of_somebody_else_is_kept() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    theirs = model[0].forward = lambda x: x
    with install(model) as kernels:
        assert model[0].forward is theirs
        assert kernels.modules == [model[1]]
    assert model[0].forward is theirs
