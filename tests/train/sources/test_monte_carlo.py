"""The gradient that real runs take from their own samples is, on average, that of the stated objective."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefopt.data.tokens import TokenRecord
from prefopt.losses.registry import load
from prefopt.plugin import Data
from prefopt.rewards.reward import Answer
from prefopt.train import BatchConfig
from prefopt.train.sources.rollouts import RolloutConfig
from tests.train import own_texts, tiny

VOCAB, LENGTH, BETA, STEPS, SAMPLES = 7, 2, 0.3, 60, 16
PROMPT = np.array([3, 5], np.int32)
END = 2
TEXTS = [(END,), *((a, b) for a, b in itertools.product(range(VOCAB), repeat=2) if a != END)]


class Sum:
    """A reward of every text."""

    name = "sum"

    def __call__(self, answers: Sequence[Answer], /) -> NDArray[np.float64]:
        return np.array([score(a.completion) for a in answers])


def score(text: Sequence[int]) -> float:
    return sum(text) / VOCAB + 0.5 * (text[0] == 4)


def log_prob(model: Any, text: Sequence[int]) -> Tensor:
    return tiny.plain_logps(model, PROMPT, np.array(text)).sum()


def exact_gradient() -> Tensor:
    """Of -E[r] + beta KL(policy || reference), by enumeration of every text."""
    model, reference = tiny.model(vocab=VOCAB), tiny.model(1, vocab=VOCAB)
    total: Any = 0.0
    for text in TEXTS:
        ours = log_prob(model, text)
        rho = ours - log_prob(reference, text).detach()
        total = total - ours.exp() * (score(text) - BETA * rho)
    total.backward()
    return flat({name: w.grad for name, w in model.named_parameters() if w.grad is not None})


def flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)])


@pytest.mark.parametrize(
    ("name", "settings", "factor"),
    [("rloo", {}, 1.0), pytest.param("dr_grpo", {"length": 1}, (SAMPLES - 1) / SAMPLES, marks=pytest.mark.slow)],
)
def test_the_mean_gradient_is_the_true_one(name: str, settings: dict[str, Any], factor: float, tmp_path: Path) -> None:
    """Within 4 standard errors, along the true gradient and along random directions; at weights that stay."""
    exact = exact_gradient() * factor
    record = TokenRecord(id="p", kind=Data.DEMONSTRATIONS, prompt=PROMPT, completions=(PROMPT[:1],))
    rollout = RolloutConfig(num_generations=SAMPLES, max_new_tokens=LENGTH)
    options = own_texts.options(reward=Sum(), rollout=rollout, batch=BatchConfig(records=1),
                                reference=tiny.model(1, vocab=VOCAB))  # fmt: skip
    kept = tiny.run(load(name, beta=BETA, **settings), [record], tmp_path, tiny.model(vocab=VOCAB), max_steps=STEPS,
                    **{**options, "learning_rate": 0.0})  # fmt: skip
    found = torch.stack([flat(gradients) for gradients in kept.gradients])
    generator = torch.Generator().manual_seed(0)
    ways = torch.cat([exact[None], torch.randn(5, len(exact), generator=generator, dtype=torch.float64)])
    values = found @ ways.T
    error = values.std(0) / STEPS**0.5
    off = (values.mean(0) - ways @ exact).abs() / error
    assert float(off.max()) < 4
    assert float((ways[0] @ exact) / error[0]) > 8  # or 4 standard errors would say nothing
