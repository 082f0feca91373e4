"""One engine for all methods: `score` records, `generate` completions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefopt.engine.generation import generate
    from prefopt.engine.scoring import Scored, score

__all__ = ["Scored", "generate", "score"]


def __getattr__(name: str) -> Any:
    # Imported on demand: the planner must not cost its users transformers.
    if name in ("score", "Scored"):
        from prefopt.engine import scoring

        return getattr(scoring, name)
    if name == "generate":
        from prefopt.engine import generation

        return generation.generate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
