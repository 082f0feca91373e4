"""Computes gated MLPs and RMS norms on CPU with fewer passes over memory, and keeps less for the backward.

Autograd keeps four tensors of the inner width for a gated MLP, and two of the hidden width for an RMS norm. Here an MLP
keeps two (gate and up; the backward makes their product again in one pass over memory), and a norm its input alone.
Weights stay where they are. A module gets the fused forward only if its own gives the same on a probe.
"""

from __future__ import annotations

import copy
import weakref
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from prefopt.engine.cpu.kernels import Forward, is_bare, kernel, replace_forward
from prefopt.engine.cpu.matmul import times_transposed

# The layers of a gated MLP, and their sizes in a probe.
LAYERS = {"gate_proj": (16, 24), "up_proj": (16, 24), "down_proj": (24, 16)}
# Modules that were probed, and whether the fused forward gives the same.
_PROBED: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


class _GatedMLP(torch.autograd.Function):
    """`down(silu(gate(x)) * up(x))` on rows (N, H), weights without bias: gate, up (I, H), down (H, I)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        g, u = times_transposed(rows, gate), times_transposed(rows, up)
        ctx.save_for_backward(rows, g, u, gate, up, down)
        return times_transposed(F.silu(g).mul_(u), down)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, g, u, gate, up, down = ctx.saved_tensors
        want_x, want_gate, want_up, want_down = ctx.needs_input_grad
        d_inner = times_transposed(grad, down.t())
        activated = F.silu(g)
        d_u = d_inner * activated
        d_down = times_transposed(grad.t(), activated.mul_(u).t()) if want_down else None
        d_g = torch.ops.aten.silu_backward(d_inner.mul_(u), g)
        d_x = None
        if want_x:
            d_x = times_transposed(d_g, gate.t()).add_(times_transposed(d_u, up.t()))
        d_gate = times_transposed(d_g.t(), rows.t()) if want_gate else None
        d_up = times_transposed(d_u.t(), rows.t()) if want_up else None
        return d_x, d_gate, d_up, d_down


class _RMSNorm(torch.autograd.Function):
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        out: Tensor = (x * scale).mul_(weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        unit = x * scale
        d_weight = (grad * unit).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, d_weight, None
        d_unit = grad * weight
        along = torch.linalg.vecdot(d_unit, unit, dim=-1).unsqueeze(-1).div_(x.shape[-1])
        return d_unit.sub_(unit.mul_(along)).mul_(scale), d_weight, None


@kernel
def _mlp_forward(self: Any, x: Tensor) -> Tensor:
    layers = (self.gate_proj, self.up_proj, self.down_proj)
    if not _supported(x, *(layer.weight for layer in layers)) or not all(map(_is_plain, layers)):
        return type(self).forward(self, x)  # type: ignore[no-any-return]
    # Reshaped here: the output of a Function may be changed in place, as Llama 4 does, only if it is not a view.
    out: Tensor = _GatedMLP.apply(x.reshape(-1, x.shape[-1]), *(layer.weight for layer in layers))  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], out.shape[-1])


@kernel
def _norm_forward(self: Any, x: Tensor) -> Tensor:
    if not _supported(x, self.weight):
        return type(self).forward(self, x)  # type: ignore[no-any-return]
    return _RMSNorm.apply(x, self.weight, _eps(self))  # type: ignore[no-any-return,no-untyped-call]


def _supported(x: Tensor, *weights: Tensor) -> bool:
    """Plain float32 on CPU; sharded, quantized and lower-precision weights are not."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and all(type(w) is nn.Parameter and w.dtype == torch.float32 for w in weights)
    )


def _is_plain(layer: Any) -> bool:
    """Whether a layer is a linear one without bias, adapter or hook."""
    return type(layer) is nn.Linear and layer.bias is None and is_bare(layer)


def _eps(module: Any) -> float:
    eps = getattr(module, "variance_epsilon", None)
    return float(module.eps if eps is None else eps)


def _candidate(module: Any) -> Forward | None:
    """The fused forward that the names in a module suggest."""
    if "forward" in vars(module) or not is_bare(module):
        return None
    layers = [getattr(module, name, None) for name in LAYERS]
    if all(type(layer) is nn.Linear and layer.bias is None for layer in layers):
        return _mlp_forward
    has_eps = hasattr(module, "variance_epsilon") or hasattr(module, "eps")
    weight = getattr(module, "weight", None)
    if type(module).__name__.endswith("RMSNorm") and has_eps and isinstance(weight, Tensor) and weight.dim() == 1:
        return _norm_forward
    return None


def install(model: nn.Module) -> list[nn.Module]:
    """Replace the forward of a model's gated MLPs and RMS norms where the fused one gives the same; returns them."""
    taken = []
    for module in model.modules():
        forward = _candidate(module)
        if forward is not None and _same(module, forward):
            replace_forward(module, forward)
            taken.append(module)
    return taken


def _same(module: Any, forward: Forward) -> bool:
    """Whether a module's own forward and the fused one give the same; False where that cannot be told."""
    weight = module.weight if forward is _norm_forward else module.gate_proj.weight
    if type(weight) is not nn.Parameter or weight.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    if module not in _PROBED:
        _PROBED[module] = _probe(module, forward)
    return _PROBED[module]


def _probe(module: Any, forward: Forward) -> bool:
    """Compare the two on a copy with random weights in training mode, on small and large inputs.

    The module's own weights may be zero, a clamp shows in large values alone, and dropout in training alone.
    """
    random = torch.Generator().manual_seed(0)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        twin = _norm_twin(module, random) if forward is _norm_forward else _mlp_twin(module, random)
        if twin is None:
            return False
        twin.train()
        width = twin.weight.shape[0] if forward is _norm_forward else twin.gate_proj.in_features
        for size in (1e-2, 1.0, 30.0, 1e3):
            probe = torch.randn(4, width, generator=random) * size
            try:
                expected, got = type(module).forward(twin, probe), forward(twin, probe)
            except (TypeError, ValueError, RuntimeError, AttributeError):  # it takes something else than a tensor
                return False
            if not isinstance(expected, Tensor) or not torch.isfinite(expected).all():
                return False
            if not torch.allclose(got, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())):
                return False
    return True


def _norm_twin(module: Any, random: torch.Generator) -> Any | None:
    """A norm with random weights, or None if it has other parameters than its weight."""
    if [name for name, _ in module.named_parameters()] != ["weight"]:
        return None
    twin = copy.deepcopy(module)
    nn.init.normal_(twin.weight, generator=random)
    return twin


def _mlp_twin(module: Any, random: torch.Generator) -> Any | None:
    """A gated MLP with three small random layers in place of its own, or None if it has other parameters."""
    if {name for name, _ in module.named_parameters()} != {f"{name}.weight" for name in LAYERS}:
        return None
    layers = {id(getattr(module, name)): _small_layer(random, *sizes) for name, sizes in LAYERS.items()}
    return copy.deepcopy(module, layers)


def _small_layer(random: torch.Generator, wide: int, out: int) -> nn.Linear:
    layer = nn.Linear(wide, out, bias=False)
    nn.init.normal_(layer.weight, std=wide**-0.5, generator=random)
    return layer
