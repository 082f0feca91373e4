"""Faster float32 on CPUs: matrix products, fused layers and attention, and buffers that stay in the process.

`install` puts the kernels into a model, until they are removed. Results are those of torch up to rounding.
"""

from prefopt.engine.cpu.allocator import give_back, keep_large_buffers
from prefopt.engine.cpu.dense_attention import attend, is_faster
from prefopt.engine.cpu.install import Kernels, install, is_kernel
from prefopt.engine.cpu.matmul import available, times_transposed

__all__ = [
    "Kernels",
    "attend",
    "available",
    "give_back",
    "install",
    "is_faster",
    "is_kernel",
    "keep_large_buffers",
    "times_transposed",
]
