"""Puts the CPU kernels into a model, and takes them out again."""

from __future__ import annotations

from typing import Self

from torch import nn

from prefopt.engine.cpu import fused, matmul


class Kernels:
    """The kernels that one call of `install` put into a model; they are removed at the end of a `with` block."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = modules

    def remove(self) -> None:
        """Give the modules their own forward back."""
        for module in self.modules:
            vars(module).pop("forward", None)
        self.modules = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def install(model: nn.Module) -> Kernels:
    """Replace the forward of linear layers, gated MLPs and RMS norms where a faster one gives the same.

    Whether it does is decided call by call: on another device, in another precision or under autocast, modules run
    their own. Modules that have a kernel already keep it, and it stays with whoever installed it.
    """
    return Kernels([*matmul.install(model), *fused.install(model)])


def is_kernel(module: nn.Module) -> bool:
    """Whether a module's forward is a kernel, which computes the same."""
    return getattr(vars(module).get("forward"), "__func__", None) in (*matmul.KERNELS, *fused.KERNELS)
