"""Fused MLPs and norms: the numbers of the model's own modules, with less kept for the backward."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from prefopt.engine.cpu import matmul
from prefopt.engine.cpu.fused import install as fuse
from prefopt.engine.cpu.kernels import Kernels, is_kernel

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


def llama() -> Any:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    for name, p in model.named_parameters():
        if "norm" in name:
            nn.init.uniform_(p, 0.5, 1.5)
    return model


def qwen3() -> Any:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SIZES))


def run(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    ids = torch.arange(22).view(2, 11)
    logits = model(input_ids=ids).logits
    logits.log_softmax(-1)[..., 3].sum().backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def equal(a: tuple[Tensor, dict[str, Tensor]], b: tuple[Tensor, dict[str, Tensor]]) -> None:
    """To the rounding of float32 over some hundred additions."""
    torch.testing.assert_close(a[0], b[0], rtol=1e-5, atol=1e-6)
    assert a[1].keys() == b[1].keys()
    for name in a[1]:
        torch.testing.assert_close(a[1][name], b[1][name], rtol=1e-4, atol=1e-5 * float(a[1][name].abs().max()))


@pytest.mark.parametrize(("make", "norms"), [(llama, 5), (qwen3, 9)])  # Qwen3 has two more a layer, on q and k
def test_values_and_gradients_are_the_models_own(make: Any, norms: int) -> None:
    model = make()
    plain = run(model)
    kernels = Kernels(fuse(model))
    assert len(kernels.modules) == 2 + norms
    assert not fuse(model)
    equal(plain, run(model))
    kernels.remove()
    assert not any(is_kernel(m) for m in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(plain[1].values(), run(model)[1].values(), strict=True))


def test_gradients_against_finite_differences() -> None:
    from prefopt.engine.cpu.fused import _GatedMLP, _RMSNorm

    torch.manual_seed(0)
    x, gate, up = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    down = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_GatedMLP.apply, (x, gate, up, down))
    weight = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_RMSNorm.apply, (x, weight, 1e-3))


def test_other_formulas_are_left_alone() -> None:
    """Gemma's MLP uses GELU and its norm scales by 1 + weight; GPT-2 has neither."""
    torch.manual_seed(0)
    assert not fuse(Gemma3ForCausalLM(Gemma3TextConfig(**SIZES)))
    assert not fuse(GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=32, n_layer=1, n_head=2)))


class Gated(nn.Module):
    """The MLP of many models, with what some of them add."""

    def __init__(self, act: nn.Module | None = None, limit: float = 0.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(32, 48, bias=False), nn.Linear(32, 48, bias=False)
        self.down_proj = nn.Linear(48, 32, bias=False)
        self.act_fn, self.limit, self.dropout = act or nn.SiLU(), limit, dropout

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        if self.limit:
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        out: Tensor = self.down_proj(self.act_fn(gate) * up)
        return nn.functional.dropout(out, self.dropout, self.training)


@pytest.mark.parametrize("added", [{"act": nn.GELU()}, {"limit": 10.0}, {"dropout": 0.1}])
def test_what_shows_only_elsewhere_is_seen(added: dict[str, Any]) -> None:
    """Another activation behind weights of zero, a clamp of large values, dropout of a model in evaluation."""
    torch.manual_seed(0)
    same, other = Gated().eval(), Gated(**added).eval()
    for module in (same, other):
        nn.init.zeros_(module.down_proj.weight)
    before = torch.random.get_rng_state()
    assert len(fuse(nn.Sequential(same, other))) == 1
    assert is_kernel(same)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not same.training


def test_a_hook_on_a_linear_layer_is_still_called() -> None:
    model, seen = llama(), []
    fuse(model)
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: seen.append(1))
    run(model)
    assert seen == [1]


def test_frozen_weights_get_no_gradient() -> None:
    model = llama()
    for name, p in model.named_parameters():
        p.requires_grad_("embed" in name or "layers.0.mlp.up" in name)
    plain = run(model)
    fuse(model)
    equal(plain, run(model))
    assert len(plain[1]) == 2


def test_lower_precision_keeps_its_own_way() -> None:
    model = llama()
    kernels = Kernels(fuse(model))
    ids = torch.arange(6)[None]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        a = model(input_ids=ids).logits
        kernels.remove()
        b = model(input_ids=ids).logits
    assert torch.equal(a, b)
    assert not fuse(llama().bfloat16())


def test_a_copy_runs_its_own_weights() -> None:
    model = llama()
    fuse(model)
    twin = copy.deepcopy(model)
    for p in model.parameters():
        nn.init.zeros_(p)
    equal(run(twin), run(llama()))


def test_outputs_may_be_changed_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama 4 adds to the output of an MLP in place."""
    monkeypatch.setattr(matmul, "available", lambda: True)
    monkeypatch.setattr(matmul, "_SMALL", 0)
    model, x = llama(), torch.randn(2, 5, 32)
    mlp, query = model.model.layers[0].mlp, model.model.layers[0].self_attn.q_proj

    def gradients() -> list[Tensor]:
        model.zero_grad()
        (mlp(x).add_(x).square().sum() + query(x).add_(1).square().sum()).backward()
        return [mlp.gate_proj.weight.grad, query.weight.grad]

    plain = gradients()
    matmul.install(model)
    fuse(model)
    assert is_kernel(mlp)
    assert is_kernel(query)
    for a, b in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_activation_checkpointing() -> None:
    model = llama()
    mlp = model.model.layers[0].mlp
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1), requires_grad=True)
    mlp(x).square().sum().backward()
    plain = x.grad.clone()
    fuse(model)
    x.grad = None
    checkpoint(mlp, x, use_reentrant=False).square().sum().backward()
    torch.testing.assert_close(x.grad, plain, rtol=1e-4, atol=1e-6)


def test_less_is_kept_for_the_backward() -> None:
    """Per token: an MLP keeps gate and up, 2 x 48 (its own: 4 x 48), and its input; a norm input and scale."""

    def kept(module: Any) -> int:
        sizes: dict[int, int] = {}

        def keep(t: Tensor) -> Tensor:
            sizes[t.data_ptr()] = t.numel() if not isinstance(t, nn.Parameter) else 0
            return t

        x = torch.randn(7, 32, requires_grad=True)
        held = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (held.append(t), keep(t))[1], lambda t: t):
            module(x)
        return sum(sizes.values())

    model = llama()
    mlp, norm = model.model.layers[0].mlp, model.model.norm
    before = kept(mlp), kept(norm)
    fuse(model)
    assert (kept(mlp), kept(norm)) == (7 * (32 + 2 * 48), 7 * (32 + 1))
    assert before[0] >= 7 * (32 + 4 * 48)
    assert before[1] > 7 * 2 * 32
