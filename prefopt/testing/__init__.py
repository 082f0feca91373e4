"""The conformance kit for losses: evaluate one by hand, and check one as the built-in ones are checked."""

from prefopt.testing.numbers import evaluate

__all__ = ["evaluate"]
