"""Puts the CPU kernels into a model, and takes them out again."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from prefopt.engine.cpu.fused import fuse
from prefopt.engine.cpu.matmul import speed_up


class Kernels:
    """The kernels that one `install` put into a model."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.modules = list(modules)

    def remove(self) -> None:
        """Give the modules their own forward back."""
        for module in self.modules:
            module.__dict__.pop("forward", None)
        self.modules.clear()


def install(model: nn.Module) -> Kernels:
    """Replace the forward of modules for which a faster one gives the same; does nothing where there is none.

    May be called again on the same model: what is installed already stays with whoever installed it.
    """
    return Kernels([*speed_up(model), *fuse(model)])
