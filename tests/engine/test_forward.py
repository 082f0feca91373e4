"""The scoring forward with heads that are more than a matrix, patched models, and in every training regime."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prefopt.engine.gates import choose_layout
from prefopt.engine.head import Head
from prefopt.engine.layout import Layout
from prefopt.engine.policy import Policy
from prefopt.engine.randomness import switch_off
from prefopt.engine.scoring import Branch, MicroBatch, score
from tests.engine import families, tiny
from tests.engine.gradients import DATA, apart, engine_grads, flat, grads, plain_grads, weights_of, worst

# ---- heads that are more than a matrix, forwards that are patched


def hooked(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda module, args, out: out * 1.5 + 0.1 * out.roll(1, -1))


def parametrized(model: Any) -> None:
    class Wavy(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight + weight.sin()

    nn.utils.parametrize.register_parametrization(model.lm_head, "weight", Wavy())


def patched(model: Any) -> None:
    head = model.lm_head
    head.forward = lambda hidden: torch.nn.functional.linear(hidden, head.weight) * 0.7


@pytest.mark.parametrize("change", [hooked, parametrized, patched])
def test_heads_that_are_more_than_a_matrix(change: Callable[[Any], None]) -> None:
    model = families.model("granite")
    before = tiny.plain(model, DATA)
    change(model)
    truth, want = tiny.plain(model, DATA), plain_grads(model, DATA)
    assert np.abs(truth[0][0] - before[0][0]).max() > 0.001
    assert not Head.of(model).plain
    for layout in ("tree", "padded"):
        assert worst(model, truth, layout=layout) < 1e-5
        assert apart(engine_grads(model, DATA, layout), want) < 1e-4  # type: ignore[arg-type]


def test_a_patched_forward_of_the_model_is_kept() -> None:
    """As device hooks and mixed precision do it."""
    model = families.model("llama")
    calls = []

    def through(self: Any, *args: Any, **kw: Any) -> Any:
        calls.append(1)
        return type(self).forward(self, *args, **kw)

    patch = MethodType(through, model)
    model.forward = patch
    truth = tiny.plain(model, DATA)
    assert worst(model, truth) < 1e-5
    before = len(calls)
    tiny.plain(model, DATA)
    assert len(calls) == before + sum(len(r.completions) for r in DATA)
    assert model.forward is patch


# ---- training regimes


@pytest.mark.parametrize("frozen", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"], ["layers", "norm"]])
def test_frozen_parts(frozen: list[str]) -> None:
    model = families.model("llama")
    for name, weight in model.named_parameters():
        weight.requires_grad_(not any(part in name for part in frozen))
    want = plain_grads(model, DATA)
    assert apart(engine_grads(model, DATA, "tree"), want) < 1e-4


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_activation_checkpointing(family: str, reentrant: bool) -> None:
    """The plan travels with the call: a recomputation of the first row after the second was run gets its own plan."""
    model = families.model(family)
    switch_off(model)
    parts = [DATA[:1], DATA[1:]]
    want = [plain_grads(model, part) for part in parts]
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    model.train()
    policy = Policy(model, "tree")
    outs = [
        MicroBatch.of([Branch(r.prompt, c) for r in part for c in r.completions], "tree").forward(policy)
        for part in parts
    ]
    for part, out, expected in zip(parts, outs, want, strict=True):
        assert apart(grads(model, (out.stats.logp * weights_of(part)).sum()), expected) < 1e-4


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_bf16_autocast_is_no_worse_than_plain_autocast(family: str, layout: Layout) -> None:
    model = families.model(family)
    exact, exact_grads = flat(model), plain_grads(model, DATA)
    batch = MicroBatch.of([Branch(r.prompt, c) for r in DATA for c in r.completions], layout)
    with torch.autocast("cpu", torch.bfloat16):
        rough = torch.cat([tiny.plain_logps(model, r.prompt, c) for r in DATA for c in r.completions])
        out = batch.forward(Policy(model, layout))
    assert out.stats.logp.dtype == torch.float32
    plain_error = (rough.detach().numpy() - exact).std()
    assert plain_error > 1e-4  # autocast was on
    assert (out.stats.logp.detach().numpy() - exact).std() < 1.5 * plain_error
    rough_grads = grads(model, (rough * weights_of(DATA)).sum())
    got = grads(model, (out.stats.logp * weights_of(DATA)).sum())

    def error(found: dict[str, Tensor]) -> float:
        return float(torch.stack([(found[n] - exact_grads[n]).norm() for n in exact_grads]).norm())

    assert error(got) < 1.5 * error(rough_grads)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
def test_bfloat16_weights(family: str) -> None:
    model = families.model(family, dtype=torch.bfloat16)
    exact = flat(families.model(family, dtype=torch.bfloat16).float())
    rough = flat(model)
    assert choose_layout(model).layout == "tree"
    scored = score(model, DATA, tokens=True)
    got = np.concatenate([t for s in scored for t in s.token or ()])
    assert (got - exact).std() < 1.5 * (rough - exact).std()
