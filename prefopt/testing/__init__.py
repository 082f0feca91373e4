"""Conformance kit for losses: evaluates a loss on given numbers, and checks it as built-in losses are checked."""

from prefopt.testing.kit import Check, check_loss, example
from prefopt.testing.numbers import evaluate

__all__ = ["Check", "check_loss", "evaluate", "example"]
