"""The pair that the hand-worked tests share, and how they call a loss.

log pi(y_w) = -2   log pi_ref(y_w) = -3     n_w = 2     rho_w = 1    l_w = -1
log pi(y_l) = -5.5 log pi_ref(y_l) = -3.5   n_l = 4     rho_l = -2   l_l = -1.375
Delta = 3   d = 3.5   d_ref = 0.5   l_w - l_l = 0.375   ref means -1.5 and -0.875, rho/n = 0.5 and -0.5
"""

from __future__ import annotations

import math
from typing import Any

from prefopt.losses.registry import load
from prefopt.testing import evaluate

PAIR: dict[str, Any] = {
    "chosen": [-2.0],
    "rejected": [-5.5],
    "ref_chosen": [-3.0],
    "ref_rejected": [-3.5],
    "chosen_num_tokens": [2],
    "rejected_num_tokens": [4],
    "chosen_score": [1.5],
    "rejected_score": [0.25],
}


def on_pair(name: str, /, **hyperparameters: Any) -> float:
    """The value of a loss on the pair."""
    return evaluate(load(name, **hyperparameters), **PAIR)[0]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x: float) -> float:
    """log(1 + e^x), that is -log sigmoid(-x)."""
    return math.log(1 + math.exp(x))
