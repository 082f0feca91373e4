"""The conformance kit for losses: evaluate one by hand, and check one as the built-in ones are checked."""

from prefopt.testing.kit import Check, check_loss, example
from prefopt.testing.numbers import evaluate

__all__ = ["Check", "check_loss", "evaluate", "example"]
