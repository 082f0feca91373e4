"""Compare methods on the same data: an equal budget, several seeds, and a verdict that may be "cannot tell"."""

from prefopt.compare.spec import Budget, Comparison, MeasureConfig, Measured, Method

__all__ = ["Budget", "Comparison", "MeasureConfig", "Measured", "Method"]
