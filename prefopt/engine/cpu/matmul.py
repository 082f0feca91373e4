"""Multiplies float32 matrices with oneDNN on processors where MKL, torch's default, runs at half speed.

MKL takes a slow path on processors that are not Intel's; oneDNN, in the same wheels, does not. On an AMD EPYC with
AVX-512 one core reaches 98 GFLOP/s with MKL and 220 with oneDNN, both in IEEE float32; `benchmarks/throughput.py`
measures both. The choice depends on the processor's vendor alone, never on a timing: runs repeat bit for bit.
"""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from prefopt.engine.cpu.kernels import kernel, replace_forward

SWITCH = "PREFOPT_MATMUL"  # "torch" turns this module off

# upstream: oneDNN's product has no public name, and MKL's is slow on some processors (pytorch/builder#504)
ONEDNN_LINEAR = "_linear_pointwise"
# With fewer multiplications a call costs more than the product.
_SMALL = 2**18


@cache
def available() -> bool:
    """Whether products go to oneDNN here: an x86 processor that is not Intel's, and a build with both libraries."""
    if os.environ.get(SWITCH) == "torch" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):  # type: ignore[no-untyped-call]
        return False
    if not hasattr(torch.ops.mkldnn, ONEDNN_LINEAR):
        return False
    return _vendor() not in ("GenuineIntel", "")


def _vendor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("vendor_id"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""


def times_transposed(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """`a @ b.T + bias`, (M, N), of `a` (M, K) and `b` (N, K); not differentiable."""
    if _is_faster(a, b):
        product: Tensor = getattr(torch.ops.mkldnn, ONEDNN_LINEAR)(a, b, bias, "none", [], "")
        return product
    return F.linear(a, b, bias)


def _is_faster(a: Tensor, b: Tensor) -> bool:
    return (
        available()
        and a.device.type == "cpu"
        and a.dtype == b.dtype == torch.float32
        and a.shape[0] * b.numel() >= _SMALL
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return times_transposed(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        want_x, want_weight, want_bias = ctx.needs_input_grad
        return (
            times_transposed(grad, weight.t()) if want_x else None,
            times_transposed(grad.t(), rows.t()) if want_weight else None,
            grad.sum(0) if want_bias else None,
        )


@kernel
def _forward(self: nn.Linear, x: Tensor) -> Tensor:
    if (
        type(self.weight) is nn.Parameter  # neither sharded nor quantized
        and x.dtype == self.weight.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() * self.weight.shape[0] >= _SMALL
        and not torch.is_autocast_enabled("cpu")
    ):
        # Reshaped here: the output of a Function may be changed in place only if it is not a view.
        out: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), self.weight, self.bias)  # type: ignore[no-untyped-call]
        return out.view(*x.shape[:-1], out.shape[-1])
    return F.linear(x, self.weight, self.bias)


def install(model: nn.Module) -> list[nn.Linear]:
    """Send the products of a model's linear layers to oneDNN where that is faster; returns those layers."""
    if not available():
        return []
    layers = [m for m in model.modules() if type(m) is nn.Linear and "forward" not in vars(m)]
    for layer in layers:
        replace_forward(layer, _forward)
    return layers
