"""Compares methods on the same data with an equal budget and several seeds; a verdict may be "cannot tell"."""

from prefopt.compare.spec import Budget, Comparison, MeasureConfig, Measurement, Method

__all__ = ["Budget", "Comparison", "MeasureConfig", "Measurement", "Method"]
