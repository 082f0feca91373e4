"""Writes texts with a model behind held-out prompts, and measures how far it drifted from where it started."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.common.estimate import Estimate
from prefopt.config.run_config import RunConfig
from prefopt.data.images.inputs import decode_prompt
from prefopt.data.tokens import TokenRecord
from prefopt.engine.generation import end_tokens
from prefopt.engine.policy import Policy, opened
from prefopt.errors import UserError
from prefopt.evaluate.kl import kl_divergence
from prefopt.models.load import load_reference
from prefopt.rewards.reward import Reward, answer, scores_of

DRIFT = ("kl", "sampled_length", "sampled_length_before")  # names of `drift_figures`

Tokens = Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How texts are sampled: at most `max_new_tokens` tokens each, at `temperature` (0 takes the likeliest token)."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How far a policy drifted from another model, by the texts that both write at temperature 1.

    Attributes:
        kl: KL(policy || other) in nats a text, exact over the vocabulary at each position of the policy's texts.
        length, length_before: tokens of a text of the policy and of the other model, the end token included.
        longer: the difference of the two, prompt by prompt.
        ended, ended_before: the share of texts that ended before `max_new_tokens`.
    """

    kl: Estimate
    length: Estimate
    length_before: Estimate
    longer: Estimate
    ended: Estimate
    ended_before: Estimate

    def plain(self) -> dict[str, Any]:
        """The estimates as JSON values."""
        return {name: estimate.plain() for name, estimate in vars(self).items()}


def held_out_prompts(records: Sequence[TokenRecord] | None, count: int) -> list[list[int]]:
    """The first `count` prompts of the records in tokens, each once."""
    found: dict[tuple[int, ...], None] = {}
    for i in range(len(records) if records is not None else 0):
        if len(found) == count:
            break
        assert records is not None
        found[tuple(records[i].prompt.tolist())] = None
    return [list(prompt) for prompt in found]


def prompt_texts(tokenizer: Any, prompts: Tokens) -> list[str]:
    """The texts of prompts, with one placeholder for each image."""
    return [decode_prompt(tokenizer, prompt) for prompt in prompts]


def continuation(tokenizer: Any, prompt: list[int], tokens: list[int], ends: Sequence[int]) -> str:
    """What a completion adds to its prompt: some tokenizers drop the space before a completion that stands alone.

    A character that was cut in two is left out.
    """
    head, whole = (decode_prompt(tokenizer, i, skip_special_tokens=True) for i in (prompt, prompt + tokens))
    said = whole[len(head) :] if whole.startswith(head) else tokenizer.decode(tokens, skip_special_tokens=True)
    return str(said) if tokens[-1] in ends else str(said).rstrip("\ufffd")


def write_texts(model: Any, tokenizer: Any, prompts: Tokens, sampling: Sampling) -> list[list[int]]:
    """Continue each prompt once; returns tokens, with the closing end token where there is one.

    Raises:
        UserError: neither model nor tokenizer names a token that ends a text.
    """
    ends = end_tokens(model, tokenizer)
    if not ends:
        raise UserError("neither the model nor its tokenizer has an end token (eos_token): a text would never end")
    with opened(model) as policy:
        return policy.generate(prompts, max_new_tokens=sampling.max_new_tokens, eos_token_id=ends,
                               temperature=sampling.temperature, seed=sampling.seed)  # fmt: skip


def sampled_rewards(
    config: RunConfig, model: Any, tokenizer: Any, held_out: Any, reward: Reward | None
) -> NDArray[np.float64] | None:
    """(n,) rewards of texts at temperature 1 behind the first held-out prompts; None without a reward or two prompts.

    Raises:
        UserError: a reward that is not one finite number for each text.
    """
    prompts = held_out_prompts(held_out, config.evaluation.kl_prompts)
    if reward is None or len(prompts) < 2:
        return None
    sampling = Sampling(max_new_tokens=config.rollout.max_new_tokens, temperature=1.0, seed=config.seed)
    texts, ends = write_texts(model, tokenizer, prompts, sampling), end_tokens(model, tokenizer)
    answers = [answer(tokenizer, p, t, ends) for p, t in zip(prompts, texts, strict=True)]
    return scores_of(reward(answers), answers, reward.name)


def reward_figures(before: NDArray[np.float64] | None, after: NDArray[np.float64] | None) -> dict[str, Any]:
    """`reward_before`, `reward`, and `reward_change` prompt by prompt, as JSON values; nothing without rewards."""
    if before is None or after is None:
        return {}
    found = {"reward_before": before, "reward": after, "reward_change": after - before}
    return {name: Estimate.of(values).plain() for name, values in found.items()}


def greedy_texts(config: RunConfig, model: Any, tokenizer: Any, held_out: Any) -> list[tuple[str, str]]:
    """(prompt, greedy continuation) of the first `evaluation.texts` held-out prompts."""
    prompts = held_out_prompts(held_out, config.evaluation.texts)
    if not prompts or not end_tokens(model, tokenizer):
        return []
    texts = write_texts(model, tokenizer, prompts, Sampling(max_new_tokens=config.evaluation.max_new_tokens))
    return [
        (decode_prompt(tokenizer, p), tokenizer.decode(t, skip_special_tokens=True))
        for p, t in zip(prompts, texts, strict=True)
    ]


def side_by_side(before: list[tuple[str, str]], after: list[tuple[str, str]]) -> list[dict[str, str]]:
    """The rows of `samples.jsonl`, from what `greedy_texts` gave before and after training."""
    return [{"prompt": p, "before": b, "after": a} for (p, b), (_, a) in zip(before, after, strict=True)]


def drift(
    model: Any, other: Any, tokenizer: Any, prompts: Tokens, sampling: Sampling, *, max_tokens: int = 4096
) -> Drift | None:
    """How far `model` drifted from `other`, by texts at temperature 1; None with fewer than two prompts or without an
    end token. Both models draw with the same random numbers, prompt by prompt.
    """
    ends = set(end_tokens(model, tokenizer))
    if len(prompts) < 2 or not ends:
        return None
    texts = write_texts(model, tokenizer, prompts, sampling)
    theirs = write_texts(other, tokenizer, prompts, sampling)
    exact = kl_divergence(model, other, prompts, texts, max_tokens=max_tokens).exact_vocabulary
    lengths, lengths_before = (np.array([len(t) for t in ts], dtype=np.float64) for ts in (texts, theirs))
    ended, ended_before = (np.array([float(t[-1] in ends) for t in ts]) for ts in (texts, theirs))
    each = range(len(prompts))
    return Drift(
        kl=Estimate.of(exact, each),
        length=Estimate.of(lengths, each),
        length_before=Estimate.of(lengths_before, each),
        longer=Estimate.of(lengths - lengths_before, each),
        ended=Estimate.of(ended, each),
        ended_before=Estimate.of(ended_before, each),
    )


def drift_from_start(config: RunConfig, model: Any, tokenizer: Any, held_out: Any) -> Drift | None:
    """How far a tuned model drifted from the run's reference, or else from the model that training started from."""
    prompts = held_out_prompts(held_out, config.evaluation.kl_prompts)
    if len(prompts) < 2 or not end_tokens(model, tokenizer):
        return None
    named = dataclasses.replace(config.model, reference=config.model.reference or config.model.path)
    start = load_reference(named, model.model if isinstance(model, Policy) else model).to(model.device)
    sampling = Sampling(max_new_tokens=config.evaluation.max_new_tokens, temperature=1.0, seed=config.seed)
    budget = config.batch.budget(model.device.type)
    return drift(model, start, tokenizer, prompts, sampling, max_tokens=budget)


def drift_figures(drift: Drift | None, prefix: str = "") -> dict[str, float]:
    """The figures that sentinels look at; none where nothing was measured."""
    if drift is None:
        return {}
    values = (drift.kl.value, drift.length.value, drift.length_before.value)
    return {f"{prefix}{name}": value for name, value in zip(DRIFT, values, strict=True)}
