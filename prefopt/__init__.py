"""prefopt: the audited zoo of preference-optimization algorithms for language models."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefopt.evaluate.score import Score, score
    from prefopt.losses.registry import load
    from prefopt.testing import check_loss, evaluate
    from prefopt.train import train

__version__ = "0.1.0"
__all__ = ["Score", "check_loss", "evaluate", "load", "score", "train"]

# Imported on first use: `import prefopt.losses` must load torch and nothing heavier.
_HOME = {
    "Score": "prefopt.evaluate.score",
    "check_loss": "prefopt.testing",
    "evaluate": "prefopt.testing",
    "load": "prefopt.losses.registry",
    "score": "prefopt.evaluate.score",
    "train": "prefopt.train",
}


class _Package(ModuleType):
    """Keeps `prefopt.train` and `prefopt.evaluate` the functions, although packages have the same names.

    Importing a package sets it as an attribute of its parent; here that is ignored for public names.
    """

    def __getattribute__(self, name: str) -> Any:
        home = _HOME.get(name)
        return super().__getattribute__(name) if home is None else getattr(import_module(home), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOME:
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted([*__all__, "__version__"])


sys.modules[__name__].__class__ = _Package
