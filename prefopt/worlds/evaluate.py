"""A policy in the review world: exact reward of its own texts, distance from the reference, held-out pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.data.tokens import TokenRecord
from prefopt.engine import generate, score
from prefopt.engine.divergence import divergence
from prefopt.worlds.build import EOS, MAX_NEW_TOKENS, prompt_ids, words
from prefopt.worlds.review import ReviewWorld

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error (nan from a single value)."""

    value: float
    se: float

    @classmethod
    def of(cls, independent: Floats) -> Estimate:
        """Of (n,) independent values."""
        se = float(independent.std(ddof=1) / np.sqrt(len(independent))) if len(independent) > 1 else float("nan")
        return cls(float(independent.mean()), se)


@dataclass(frozen=True, eq=False)
class Sample:
    """A text that the policy wrote, and its exact reward."""

    prompt: str
    completion: str
    reward: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation:
    """One policy in the review world. Standard errors are over prompts; samples of one prompt count as one.

    Attributes:
        true_reward: exact reward of samples at temperature 1.
        kl: KL(policy || reference) in nats a text, by exact next-token distributions on those samples.
        kl_monte_carlo: the same quantity as mean log-ratio of the samples.
        valid: share of samples that parse.
        length: tokens of a sample, end of text included.
        accuracy: share of held-out pairs whose log-ratio to the reference is larger on the chosen side; a tie is half.
        chosen_change, rejected_change: mean log-ratio to the reference of the held-out chosen and rejected texts, nats.
        reward_by_prompt: (P,) mean reward of each prompt's samples, for paired comparisons.
        samples: the first sample of each prompt.
    """

    true_reward: Estimate
    kl: Estimate
    kl_monte_carlo: Estimate
    valid: Estimate
    length: Estimate
    accuracy: Estimate
    chosen_change: Estimate
    rejected_change: Estimate
    reward_by_prompt: Floats
    samples: tuple[Sample, ...]

    def estimates(self) -> dict[str, Estimate]:
        """The figures by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Estimate)}


def evaluate(
    world: ReviewWorld,
    policy: Any,
    reference: Any,
    pairs: Sequence[TokenRecord],
    *,
    prompts: int = 512,
    samples_per_prompt: int = 4,
    seed: int = 0,
) -> Evaluation:
    """Evaluate `policy` on fresh samples behind test prompts, and on held-out pairs.

    Prompts and random numbers depend on `seed` alone, so that two policies are compared on the same draws.
    """
    asked = world.prompts(prompts, seed, "test")
    repeated = [prompt for prompt in asked for _ in range(samples_per_prompt)]
    written = _write(policy, repeated, seed)
    completions = [words(text) for text in written]
    texts = [f"{prompt} {completion}" for prompt, completion in zip(repeated, completions, strict=True)]
    reward = world.reward(texts)
    distance = divergence(policy, reference, [prompt_ids(prompt) for prompt in repeated], written)

    def by_prompt(values: NDArray[Any]) -> Floats:
        means: Floats = values.astype(np.float64).reshape(prompts, samples_per_prompt).mean(1)
        return means

    ratio = log_ratios(policy, reference, pairs)
    every = range(0, len(repeated), samples_per_prompt)
    return Evaluation(
        true_reward=Estimate.of(by_prompt(reward)),
        kl=Estimate.of(by_prompt(distance.exact_vocabulary)),
        kl_monte_carlo=Estimate.of(by_prompt(distance.monte_carlo)),
        valid=Estimate.of(by_prompt(world.valid(texts))),
        length=Estimate.of(by_prompt(np.array([len(text) for text in written]))),
        accuracy=win_share(ratio),
        chosen_change=Estimate.of(ratio[:, 0]),
        rejected_change=Estimate.of(ratio[:, 1]),
        reward_by_prompt=by_prompt(reward),
        samples=tuple(Sample(repeated[i], completions[i], float(reward[i])) for i in every),
    )


def log_ratios(policy: Any, reference: Any, pairs: Sequence[TokenRecord]) -> Floats:
    """(n, 2) log policy - log reference of the chosen and the rejected text of each pair, nats."""
    return log_probs(policy, pairs) - log_probs(reference, pairs)


def log_probs(model: Any, pairs: Sequence[TokenRecord]) -> Floats:
    """(n, 2) log-probs of the chosen and the rejected text of each pair, nats."""
    return np.stack([scored.sum for scored in score(model, pairs)]).astype(np.float64)


def win_share(ratio: Floats) -> Estimate:
    """Share of pairs whose log-ratio (n, 2) is larger on the chosen side; a tie is half."""
    gap = ratio[:, 0] - ratio[:, 1]
    return Estimate.of((gap > 0) + 0.5 * (gap == 0))


def sampled_reward(world: ReviewWorld, policy: Any, prompts: Sequence[str], *, seed: int = 0) -> Estimate:
    """Exact reward of one sample behind each prompt."""
    texts = [f"{prompt} {words(text)}" for prompt, text in zip(prompts, _write(policy, prompts, seed), strict=True)]
    return Estimate.of(world.reward(texts))


def _write(model: Any, prompts: Sequence[str], seed: int) -> list[list[int]]:
    """A sample at temperature 1 behind each prompt, in tokens."""
    return generate(
        model,
        [prompt_ids(prompt) for prompt in prompts],
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=EOS,
        temperature=1.0,
        seed=seed,
        batch_size=1024,
    )


def paired_difference(a: Evaluation, b: Evaluation) -> Estimate:
    """Reward of `a` minus reward of `b` on the same prompts; the error is that of the difference."""
    return Estimate.of(a.reward_by_prompt - b.reward_by_prompt)


def best_of_n(
    world: ReviewWorld, model: Any, sizes: Sequence[int], *, prompts: int = 128, seed: int = 0
) -> list[tuple[int, float, Estimate]]:
    """A yardstick without training: draw n samples of `model`, keep the best by exact reward.

    Returns:
        (n, KL bound, reward) for each of `sizes`. The bound on the KL to `model` is log n - (n - 1) / n nats, reached
        where no two samples have equal reward (Beirami et al., 2024, https://arxiv.org/abs/2401.01879).
    """
    drawn = max(sizes)
    asked = [prompt for prompt in world.prompts(prompts, seed, "test") for _ in range(drawn)]
    written = _write(model, asked, seed)
    texts = [f"{prompt} {words(text)}" for prompt, text in zip(asked, written, strict=True)]
    reward = world.reward(texts).reshape(prompts, drawn)
    points = []
    for n in sizes:
        groups = reward[:, : drawn // n * n].reshape(prompts, -1, n)
        points.append((n, float(np.log(n) - (n - 1) / n), Estimate.of(groups.max(2).mean(1))))
    return points
