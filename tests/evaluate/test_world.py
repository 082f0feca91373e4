"""Evaluation in the review world, above all its two estimates of the KL."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from prefopt.common.estimate import Estimate
from prefopt.data.tokens import TokenRecord
from prefopt.engine.generation import generate
from prefopt.engine.scoring import score
from prefopt.evaluate.kl import kl_divergence
from prefopt.evaluate.world import (
    best_of_n,
    distinct,
    evaluate,
    figures,
    log_probs,
    paired_difference,
)
from prefopt.plugin import Data
from prefopt.worlds.build import EOS, MAX_NEW_TOKENS, WorldFiles, prompt_ids
from prefopt.worlds.review import ReviewWorld

WORLD = ReviewWorld()


@pytest.fixture(scope="module")
def sft(world_files: WorldFiles) -> Any:
    return AutoModelForCausalLM.from_pretrained(world_files.model)


@pytest.fixture(scope="module")
def nudged(world_files: WorldFiles) -> Any:
    """The SFT model with its weights moved a little: a policy some nats away, whose texts are still short."""
    model = AutoModelForCausalLM.from_pretrained(world_files.model)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.025 * torch.randn_like(parameter))
    return model


def record(prompt: str, chosen: str, rejected: str) -> TokenRecord:
    sides = tuple(np.array([*prompt_ids(text)[1:], EOS], dtype=np.int32) for text in (chosen, rejected))
    prompt_tokens = np.array(prompt_ids(prompt), dtype=np.int32)
    scores = tuple(WORLD.reward([f"{prompt} {text}" for text in (chosen, rejected)]).tolist())
    return TokenRecord(id=chosen, kind=Data.PAIRS, prompt=prompt_tokens, completions=sides, scores=scores)


PAIRS = [
    record("the soup was cold but", "the staff was kind .", "the staff was awful ."),
    record("the bed is fine and", "the pool was great .", "the wine felt stale but the view is nice ."),
    record("the bed is fine and", "the pool was bad .", "the view is nice ."),  # a flipped label
]


def fresh_texts(model: Any, n: int, seed: int) -> tuple[list[list[int]], list[list[int]]]:
    prompts = [prompt_ids(prompt) for prompt in WORLD.prompts(512, 0, "test")] * (n // 512)
    return prompts, generate(
        model, prompts, max_new_tokens=MAX_NEW_TOKENS, eos_token_id=EOS, seed=seed, batch_size=1024
    )


def test_both_kl_estimates_have_one_mean(sft: Any, nudged: Any) -> None:
    """On 4,096 fresh texts their paired difference is 0 within four standard errors, cut-off texts included."""
    prompts, texts = fresh_texts(nudged, 4096, seed=3)
    assert any(text[-1] != EOS for text in texts)
    d = kl_divergence(nudged, sft, prompts, texts)
    difference = Estimate.of(d.exact_vocabulary - d.monte_carlo)
    assert abs(difference.value) < 4 * difference.se
    assert d.exact_vocabulary.mean() > 20 * difference.se  # the test can tell: a KL well above its error
    assert d.exact_vocabulary.std() < d.monte_carlo.std()  # what exact distributions are for


def test_one_position_after_the_end_would_bias_the_kl(sft: Any, nudged: Any) -> None:
    """The distribution after the end token belongs to no text; counting it adds a KL of its own, far beyond noise."""
    prompts, texts = fresh_texts(nudged, 2048, seed=4)
    ended = [i for i, text in enumerate(texts) if text[-1] == EOS]
    right = kl_divergence(nudged, sft, prompts, texts).exact_vocabulary[ended]
    longer = [[*texts[i], EOS] for i in ended]
    wrong = kl_divergence(nudged, sft, [prompts[i] for i in ended], longer).exact_vocabulary
    excess = Estimate.of(wrong - right)
    assert excess.value > 5 * excess.se


def test_divergence_against_a_plain_forward(sft: Any, nudged: Any) -> None:
    prompts, texts = fresh_texts(nudged, 512, seed=1)
    d = kl_divergence(nudged, sft, prompts[:40], texts[:40], max_tokens=200)
    for i in range(40):
        ids = torch.tensor([prompts[i] + texts[i]])
        with torch.no_grad():
            p, q = (torch.log_softmax(m(ids).logits[0, len(prompts[i]) - 1 : -1].double(), -1) for m in (nudged, sft))
        assert d.exact_vocabulary[i] == pytest.approx(float((p.exp() * (p - q)).sum()), abs=2e-5)
        steps = range(len(texts[i]))
        assert d.monte_carlo[i] == pytest.approx(float((p - q)[steps, texts[i]].sum()), abs=2e-5)


def test_the_reference_is_at_no_distance(sft: Any) -> None:
    e = evaluate(WORLD, sft, sft, PAIRS, prompts=32, samples_per_prompt=2)
    assert e.kl.value == pytest.approx(0, abs=1e-6)
    assert e.kl_monte_carlo.value == pytest.approx(0, abs=1e-5)
    assert e.accuracy.value == 0.5  # every pair is a tie
    assert e.chosen_change.value == e.rejected_change.value == 0
    assert len(e.samples) == len(e.reward_by_prompt) == 32


def test_figures_are_what_they_say(sft: Any, nudged: Any) -> None:
    e = evaluate(WORLD, nudged, sft, PAIRS, prompts=64, samples_per_prompt=1, seed=2)
    texts = [f"{s.prompt} {s.completion}" for s in e.samples]
    rewards = WORLD.reward(texts)
    assert e.true_reward.value == pytest.approx(rewards.mean())
    assert e.true_reward.se == pytest.approx(rewards.std(ddof=1) / math.sqrt(64))
    assert [s.reward for s in e.samples] == rewards.tolist()
    assert e.valid.value == pytest.approx(WORLD.valid(texts).mean())
    assert {s.prompt for s in e.samples} == set(WORLD.prompts(64, 2, "test"))
    ratio = log_probs(nudged, PAIRS) - log_probs(sft, PAIRS)
    assert e.chosen_change.value == pytest.approx(ratio[:, 0].mean())
    assert e.accuracy.value == pytest.approx((ratio[:, 0] > ratio[:, 1]).mean())
    again = evaluate(WORLD, nudged, sft, PAIRS, prompts=64, samples_per_prompt=1, seed=2)
    assert again.estimates() == e.estimates()
    assert paired_difference(again, e) == Estimate(0.0, 0.0, len(e.reward_by_prompt))


def test_entropy_is_the_mean_of_minus_log_probs(sft: Any) -> None:
    """Two unbiased estimates of one entropy: their paired difference is 0 within four standard errors."""
    prompts, texts = fresh_texts(sft, 1024, seed=6)
    records = [
        TokenRecord(
            id=str(i), kind=Data.DEMONSTRATIONS, prompt=np.array(p, np.int32), completions=(np.array(t, np.int32),)
        )
        for i, (p, t) in enumerate(zip(prompts, texts, strict=True))
    ]
    sampled = -np.array([scored.sum[0] for scored in score(sft, records)])
    exact = kl_divergence(sft, sft, prompts, texts).entropy
    difference = Estimate.of(exact - sampled)
    assert abs(difference.value) < 4 * difference.se
    assert exact.mean() > 20 * difference.se


def test_distinct_by_hand() -> None:
    assert distinct(["a b a", "a b"], 1) == pytest.approx(2 / 5)
    assert distinct(["a b a", "a b"], 2) == pytest.approx(2 / 3)  # a b, b a, a b
    assert distinct(["a", ""], 2) == 0  # no neighbours


def test_figures_of_pairs_and_splits(sft: Any, nudged: Any) -> None:
    size = {"prompts": 64, "samples_per_prompt": 2, "seed": 2}
    values, samples = figures(WORLD, nudged, sft, PAIRS, **size)
    own = log_probs(nudged, PAIRS)
    ratio = own - log_probs(sft, PAIRS)
    assert values["margin"] == pytest.approx(ratio[:, 0] - ratio[:, 1])
    assert values["chosen_logp"] == pytest.approx(own[:, 0])
    # by exact reward the third pair is the other way round
    flipped = np.array([ratio[0], ratio[1], ratio[2, ::-1]])
    assert values["true_accuracy"].tolist() == (flipped[:, 0] > flipped[:, 1]).tolist()
    assert values["accuracy_sum"].tolist() == (own[:, 0] > own[:, 1]).tolist()
    mean = own / [[6, 6], [6, 11], [6, 6]]  # words, full stop and end of text
    assert values["accuracy_mean"].tolist() == (mean[:, 0] > mean[:, 1]).tolist()
    assert all(len(values[name]) == 64 for name in ("true_reward", "kl", "entropy", "valid", "length", "distinct_2"))
    _, others = figures(WORLD, nudged, sft, PAIRS, split="validation", **size)
    assert not {s.prompt for s in samples} & {s.prompt for s in others}


def test_estimate_by_hand() -> None:
    # mean of 1, 2, 6 is 3; squared distances 4 + 1 + 9 = 14, over 2 is 7, over 3 values: sqrt(7 / 3)
    assert Estimate.of(np.array([1.0, 2.0, 6.0])) == Estimate(3.0, pytest.approx(math.sqrt(7 / 3)), 3)
    assert math.isnan(Estimate.of(np.array([1.0])).se)


def test_best_of_n_grows(sft: Any) -> None:
    points = best_of_n(WORLD, sft, [1, 2, 8], prompts=48)
    assert [n for n, _, _ in points] == [1, 2, 8]
    assert [kl for _, kl, _ in points] == pytest.approx([0, math.log(2) - 1 / 2, math.log(8) - 7 / 8])
    one, two, eight = (e.value for _, _, e in points)
    assert one < two < eight
