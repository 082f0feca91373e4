"""Small batches that the hand-worked tests share, and the arithmetic they are worked with."""

from __future__ import annotations

import math
from typing import Any

import pytest

from prefopt.losses.registry import load
from prefopt.testing import evaluate

close = pytest.approx
LOG2 = math.log(2)

# log pi(y_w) = -2   log pi_ref(y_w) = -3     n_w = 2     rho_w = 1    l_w = -1
# log pi(y_l) = -5.5 log pi_ref(y_l) = -3.5   n_l = 4     rho_l = -2   l_l = -1.375
# Delta = 3   d = 3.5   d_ref = 0.5   l_w - l_l = 0.375   ref means -1.5 and -0.875, rho/n = 0.5 and -0.5
PAIR: dict[str, Any] = {
    "chosen": [-2.0],
    "rejected": [-5.5],
    "ref_chosen": [-3.0],
    "ref_rejected": [-3.5],
    "chosen_num_tokens": [2],
    "rejected_num_tokens": [4],
    "chosen_score": [1.5],
    "rejected_score": [0.25],
    "margin": [0.75],
    "probability": [0.8],
    "tied": [False],
}
KL = {"chosen_kl": [[0.25, 0.5]], "rejected_kl": [[0.5, 0.5, 0.25, 0.25]]}
ENTROPY = {"chosen_ref_entropy": [[1.0, 2.0]], "rejected_ref_entropy": [[1.0, 1.0, 0.5, 0.5]]}

SAME_SIDES = {"chosen": [-1.0], "ref_chosen": [-1.0], "rejected": [-2.0], "ref_rejected": [-2.0]}

TOKENS = {
    "chosen_token": [[-1.0, -1.0]],
    "ref_chosen_token": [[-1.25, -1.75]],  # rho_t 0.25, 0.75
    "rejected_token": [[-2.0, -1.5, -1.0, -1.0]],
    "ref_rejected_token": [[-1.0, -1.0, -1.0, -0.5]],  # rho_t -1, -0.5, 0, -0.5
}

# Delta: 3, -1, 0.5;  d: 3.5, -0.5, 1;  d_ref: 0.5, 0.5, 0.5
THREE: dict[str, list[Any]] = {
    "chosen": [-2.0, -2.5, -1.0],
    "rejected": [-5.5, -2.0, -2.0],
    "ref_chosen": [-3.0, -2.0, -1.0],
    "ref_rejected": [-3.5, -2.5, -1.5],
    "chosen_num_tokens": [2, 5, 1],
    "rejected_num_tokens": [4, 2, 2],
    "ids": [11, 12, 13],
}

# rho: 1, -2 (desirable), 0.5, -1 (undesirable)
ITEMS: dict[str, Any] = {
    "completion": [-2.0, -5.0, -1.0, -4.0],
    "ref_completion": [-3.0, -3.0, -1.5, -3.0],
    "num_tokens": [2, 5, 1, 4],
    "desirable": [True, True, False, False],
}
MISMATCHED = {"mismatched": [-3.0, -4.0, -6.0, -2.0], "ref_mismatched": [-4.0, -5.0, -6.0, -4.0]}  # rho 1, 1, 0, 2

# rho: 1, -2, 0.5; scores: middle, best, worst; per token: -1, -1.25, -1.5
LIST: dict[str, list[list[Any]]] = {
    "completions": [[-2.0, -5.0, -1.5]],
    "ref_completions": [[-3.0, -3.0, -2.0]],
    "num_tokens": [[2, 4, 1]],
    "scores": [[0.5, 1.0, 0.0]],
}


def on_pair(name: str, /, **hyperparameters: Any) -> float:
    """The value of a loss on `PAIR`."""
    return evaluate(load(name, **hyperparameters), **PAIR)[0]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x: float) -> float:
    """log(1 + e^x), that is -log sigmoid(-x)."""
    return math.log(1 + math.exp(x))


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]
