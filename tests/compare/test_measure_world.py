"""Exact measures of a policy on a world."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from prefopt.common.estimate import Estimate
from prefopt.compare.measure_world import kl_warning, measure
from prefopt.compare.spec import Measurement
from prefopt.worlds.build import WorldFiles
from prefopt.worlds.review import ReviewWorld

WORLD = ReviewWorld()


@pytest.fixture(scope="module")
def policy(world_files: WorldFiles) -> Any:
    """The SFT model with its weights moved a little."""
    model = AutoModelForCausalLM.from_pretrained(world_files.model)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.025 * torch.randn_like(parameter))
    return model


def test_measures_of_a_policy(policy: Any) -> None:
    found = measure(policy, WORLD, split="test", prompts=48, samples_per_prompt=2, seed=1)
    assert {name: float(array.mean()) for name, array in found.arrays.items()} == found.figures
    assert len(found.arrays["true_reward"]) == len(found.arrays["kl"]) == 48
    assert len(found.arrays["accuracy"]) == 132  # prompts of the 256 held-out pairs
    assert set(found.figures) >= {"valid", "length", "entropy", "distinct_1", "chosen_change", "rejected_change"}
    assert found.figures["kl"] > 0
    assert found.texts[0].keys() == {"prompt", "text", "reward"}
    again = measure(policy, WORLD, split="test", prompts=48, samples_per_prompt=2, seed=1)
    assert again.figures == found.figures
    assert again.texts == found.texts
    other = measure(policy, WORLD, split="validation", prompts=48, samples_per_prompt=2, seed=1)
    assert not {text["prompt"] for text in other.texts} & {text["prompt"] for text in found.texts}


@pytest.mark.slow
def test_exact_kl_agrees_with_monte_carlo_on_4096_samples(policy: Any) -> None:
    found = measure(policy, WORLD, split="test", prompts=512, samples_per_prompt=8)
    assert kl_warning(found, 4096) is None
    assert found.figures["kl"] > 20 * Estimate.of(found.arrays["kl_gap"]).se  # the check can tell


def test_estimates_of_kl_that_disagree_are_a_warning() -> None:
    gap = np.array([0.2 - 0.03, 0.2 + 0.03] * 50)  # standard error 0.03 / sqrt(99)
    found = Measurement(figures={"kl": 1.2, "kl_monte_carlo": 1.0}, arrays={"kl_gap": gap})
    warning = kl_warning(found, 4096)
    assert warning is not None
    assert "1.200" in warning
    assert "+66.3 standard errors" in warning
    assert kl_warning(found, 4095) is None
    assert kl_warning(Measurement(figures=found.figures, arrays={"kl_gap": gap - 0.2}), 4096) is None
