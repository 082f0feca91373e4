"""prefopt: the audited zoo of preference-optimization algorithms for language models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefopt.common.lazy_package import load_lazily

if TYPE_CHECKING:
    from prefopt.cli.notebook import compare, train
    from prefopt.evaluate.score import Score, score
    from prefopt.losses.registry import load
    from prefopt.testing import check_loss, evaluate

__version__ = "0.1.0"
__all__ = ["Score", "check_loss", "compare", "evaluate", "load", "score", "train"]

# `import prefopt.losses` must load torch and nothing heavier.
load_lazily(
    __name__,
    {
        "Score": "prefopt.evaluate.score",
        "check_loss": "prefopt.testing",
        "compare": "prefopt.cli.notebook",
        "evaluate": "prefopt.testing",
        "load": "prefopt.losses.registry",
        "score": "prefopt.evaluate.score",
        "train": "prefopt.cli.notebook",
    },
)
