"""Loads the public names of a package on first use, so that importing one light module of it loads nothing heavy."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


def load_lazily(package: str, homes: Mapping[str, str]) -> None:
    """Make each public name of `package` an attribute that is imported from its home when it is first read.

    Importing a module sets it as an attribute of its package; that is ignored where a public name is the same, so that
    `prefopt.train` stays the function.

    Args:
        package: the `__name__` of the package that calls.
        homes: the module that defines each name.
    """

    class LazyPackage(ModuleType):
        def __getattribute__(self, name: str) -> Any:
            home = homes.get(name)
            return super().__getattribute__(name) if home is None else getattr(import_module(home), name)

        def __setattr__(self, name: str, value: Any) -> None:
            if name not in homes:
                super().__setattr__(name, value)

        def __dir__(self) -> list[str]:
            return sorted({*homes, *super().__dir__()})

    sys.modules[package].__class__ = LazyPackage
