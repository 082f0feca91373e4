"""prefopt: the audited zoo of preference-optimization algorithms for language models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefopt.api import Score, score
    from prefopt.registry import load
    from prefopt.testing import check_loss, evaluate
    from prefopt.trainer import train

__version__ = "0.1.0"
__all__ = ["Score", "check_loss", "evaluate", "load", "score", "train"]

# On demand: `import prefopt.losses` must load torch and nothing heavier.
_HOME = {
    "Score": "prefopt.api",
    "check_loss": "prefopt.testing",
    "evaluate": "prefopt.testing",
    "load": "prefopt.registry",
    "score": "prefopt.api",
    "train": "prefopt.trainer",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
