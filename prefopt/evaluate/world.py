"""Measures a policy in a world: exact reward of its own texts, drift from the reference, held-out pairs.

Figures of prompts are (P,) means over each prompt's samples of

- `true_reward`: exact reward;
- `kl`: KL(policy || reference) in nats a text, by exact next-token distributions on the samples;
- `kl_monte_carlo`: the same quantity as the samples' log-ratio;
- `entropy`: nats a text, by exact next-token distributions on the samples;
- `valid`: whether it parses; `length`: tokens, end of text included;
- `distinct_1`, `distinct_2`: distinct words, and pairs of neighbouring words, among all in a prompt's samples
  (Li et al., 2016, https://arxiv.org/abs/1510.03055); 0 where there are none.

Figures of held-out pairs are (n,)

- `accuracy`: whether the log-ratio to the reference is larger on the chosen side; a tie is half;
- `accuracy_sum`, `accuracy_mean`: the same by log-prob, and by log-prob per token, without the reference;
- `ties`: the share of pairs whose log-ratios are equal;
- `true_accuracy`: as `accuracy`, of the side with the larger exact reward, whatever the label says;
- `chosen_change`, `rejected_change`: log-ratios to the reference, nats; `margin`: their difference;
- `chosen_logp`: log-prob of the chosen side, nats.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.common.estimate import Estimate, shares_won
from prefopt.data.tokens import TokenRecord
from prefopt.engine.generation import generate
from prefopt.engine.scoring import score
from prefopt.evaluate.kl import kl_divergence
from prefopt.worlds import Task, World, task_of
from prefopt.worlds.rater import Split

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Sample:
    """A text of the policy, and its exact reward."""

    prompt: str
    completion: str
    reward: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation:
    """The figures of one policy in the review world, with standard errors over prompts.

    Attributes:
        true_reward, kl, kl_monte_carlo, valid, length, accuracy, chosen_change, rejected_change: means of what
            `figures` measures under these names.
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
        """All estimates by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Estimate)}


def evaluate(
    world: World,
    policy: Any,
    reference: Any,
    pairs: Sequence[TokenRecord],
    *,
    prompts: int = 512,
    samples_per_prompt: int = 4,
    seed: int = 0,
) -> Evaluation:
    """Evaluate `policy` on fresh samples behind test prompts, and on held-out pairs; see `figures`."""
    values, samples = figures(
        world, policy, reference, pairs, prompts=prompts, samples_per_prompt=samples_per_prompt, seed=seed
    )
    names = [field.name for field in dataclasses.fields(Evaluation) if field.name in values]
    return Evaluation(
        **{name: Estimate.of(values[name]) for name in names},
        reward_by_prompt=values["true_reward"],
        samples=samples,
    )


def figures(
    world: World,
    policy: Any,
    reference: Any,
    pairs: Sequence[TokenRecord],
    *,
    split: Split = "test",
    prompts: int = 512,
    samples_per_prompt: int = 4,
    seed: int = 0,
) -> tuple[dict[str, Floats], tuple[Sample, ...]]:
    """Measure a policy, prompt by prompt and pair by pair.

    Prompts and random numbers depend on `split` and `seed` alone, so that policies are compared on the same draws. What
    is chosen between policies is chosen on "validation"; "test" shares no prompt with it.

    Args:
        world: the world, with its reward and prompts.
        policy, reference: causal language models with the world's vocabulary.
        pairs: held-out pairs with their exact rewards as `scores`.
        split: the split that prompts are drawn from.
        prompts: the number of prompts.
        samples_per_prompt: the number of samples behind each, at temperature 1.
        seed: seeds the choice of prompts and the samples.

    Returns:
        The figures of the module's description, (P,) or (n,) each, and the first sample of each prompt.
    """
    task = task_of(world)
    repeated = [prompt for prompt in task.prompts(prompts, seed, split) for _ in range(samples_per_prompt)]
    written = _write(policy, task, repeated, seed)
    answers = task.answers(repeated, written)
    reward = task.reward(answers)
    divergence = kl_divergence(policy, reference, repeated, written, max_tokens=task.sampling.max_tokens)
    by_sample = {
        "true_reward": reward,
        "kl": divergence.exact_vocabulary,
        "kl_monte_carlo": divergence.monte_carlo,
        "entropy": divergence.entropy,
        "valid": task.valid(answers).astype(np.float64),
        "length": np.array([float(len(text)) for text in written]),
    }
    every = range(0, len(repeated), samples_per_prompt)
    by_prompt = [[task.text(one) for one in answers[i : i + samples_per_prompt]] for i in every]
    values = {name: value.reshape(prompts, samples_per_prompt).mean(1) for name, value in by_sample.items()}
    values |= {f"distinct_{n}": np.array([distinct(group, n) for group in by_prompt]) for n in (1, 2)}
    return (
        values | _of_pairs(policy, reference, pairs),
        tuple(Sample(answers[i].prompt_text, task.text(answers[i]), float(reward[i])) for i in every),
    )


# Figures of held-out pairs, of which several may have one prompt; the others are of a prompt's samples.
OF_PAIRS = ("accuracy", "accuracy_sum", "accuracy_mean", "true_accuracy", "ties", "chosen_change", "rejected_change",
            "margin", "chosen_logp")  # fmt: skip


def _of_pairs(policy: Any, reference: Any, pairs: Sequence[TokenRecord]) -> dict[str, Floats]:
    own = log_probs(policy, pairs)
    ratio = own - log_probs(reference, pairs)
    tokens = np.array([[len(side) for side in pair.completions] for pair in pairs])
    scores = np.array([pair.scores for pair in pairs], dtype=np.float64)
    by_reward = np.where(scores[:, :1] >= scores[:, 1:], ratio, ratio[:, ::-1])
    return {
        "accuracy": _wins(ratio),
        "accuracy_sum": _wins(own),
        "accuracy_mean": _wins(own / tokens),
        "true_accuracy": _wins(by_reward),
        "ties": (ratio[:, 0] == ratio[:, 1]).astype(np.float64),
        "chosen_change": ratio[:, 0],
        "rejected_change": ratio[:, 1],
        "margin": ratio[:, 0] - ratio[:, 1],
        "chosen_logp": own[:, 0],
    }


def distinct(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams of words among all n-grams of `texts`; 0 where they have none."""
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def log_probs(model: Any, pairs: Sequence[TokenRecord]) -> Floats:
    """(n, 2) log-probs of the chosen and the rejected text of each pair, nats."""
    return np.stack([scored.sum for scored in score(model, pairs)]).astype(np.float64)


def win_share(ratio: Floats) -> Estimate:
    """The share of pairs whose log-ratio (n, 2) is larger on the chosen side; a tie is half."""
    return Estimate.of(_wins(ratio))


def _wins(values: Floats) -> Floats:
    """(n,) 1 where the first of two values is larger, 1/2 where they are equal."""
    return shares_won(values[:, 0] - values[:, 1])


def sampled_reward(world: World, policy: Any, prompts: Sequence[Sequence[int]], *, seed: int = 0) -> Estimate:
    """Exact reward of one sample behind each prompt, given in tokens."""
    task = task_of(world)
    return Estimate.of(task.reward(task.answers(prompts, _write(policy, task, prompts, seed))))


def _write(model: Any, task: Task, prompts: Sequence[Sequence[int]], seed: int) -> list[list[int]]:
    """A sample at temperature 1 behind each prompt, in tokens."""
    how = task.sampling
    return generate(
        model,
        prompts,
        max_new_tokens=how.max_new_tokens,
        eos_token_id=how.ends,
        temperature=1.0,
        seed=seed,
        batch_size=how.batch_size,
    )


def paired_difference(a: Evaluation, b: Evaluation) -> Estimate:
    """Reward of `a` minus reward of `b` on the same prompts; the error is that of the difference."""
    return Estimate.of(a.reward_by_prompt - b.reward_by_prompt)


def rewards(world: World, model: Any, *, prompts: int, samples_per_prompt: int, seed: int = 0) -> Floats:
    """(prompts, samples_per_prompt) exact rewards of samples of `model` at temperature 1 behind test prompts."""
    task = task_of(world)
    repeated = [prompt for prompt in task.prompts(prompts, seed, "test") for _ in range(samples_per_prompt)]
    answers = task.answers(repeated, _write(model, task, repeated, seed))
    return task.reward(answers).reshape(prompts, samples_per_prompt)


def best_of_n(
    world: World, model: Any, sizes: Sequence[int], *, prompts: int = 128, seed: int = 0
) -> list[tuple[int, float, Estimate]]:
    """The reward of best-of-n sampling, a baseline without training: the best of n samples by exact reward.

    Returns:
        (n, KL bound, reward) for each of `sizes`. The bound on the KL to `model` is log n - (n - 1) / n nats, reached
        where no two samples have equal reward (Beirami et al., 2024, https://arxiv.org/abs/2401.01879).
    """
    drawn = max(sizes)
    reward = rewards(world, model, prompts=prompts, samples_per_prompt=drawn, seed=seed)
    points = []
    for n in sizes:
        groups = reward[:, : drawn // n * n].reshape(prompts, -1, n)
        points.append((n, float(np.log(n) - (n - 1) / n), Estimate.of(groups.max(2).mean(1))))
    return points
