"""Faster float32 on CPUs: matrix products, fused layers and attention, and buffers that stay in the process.

`install` puts the kernels into a model, until they are removed. Results are those of torch up to rounding.
"""

from torch import nn

from prefopt.engine.cpu import fused, matmul
from prefopt.engine.cpu.allocator import give_back, keep_large_buffers
from prefopt.engine.cpu.dense_attention import attend, is_faster
from prefopt.engine.cpu.kernels import Kernels, is_bare
from prefopt.engine.cpu.matmul import available, times_transposed

__all__ = ["Kernels", "attend", "available", "give_back", "install", "is_bare", "is_faster", "keep_large_buffers",
           "times_transposed"]  # fmt: skip


def install(model: nn.Module) -> Kernels:
    """Replace the forward of linear layers, gated MLPs and RMS norms where a faster one gives the same.

    A kernel decides at each call: on another device, in another precision or under autocast it leaves the work to the
    module's own forward. A module that has a kernel already keeps it, and that one stays with whoever installed it.
    """
    return Kernels([*matmul.install(model), *fused.install(model)])
