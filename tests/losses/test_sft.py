"""Proofs of `sft`, `sft_token_mean`."""

from __future__ import annotations

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from prefopt.testing.samples import Named
from tests.losses.hand import close
from tests.losses.identities import Sides, identity, pairs, same_length, values
from tests.losses.optima import SMALL, distance
from tests.losses.trl_peer import demonstrations, ours, trl_dpo


def test_sft_by_hand() -> None:
    value = evaluate(load("sft"), chosen=[-2.0, -6.0], chosen_num_tokens=[2, 3])
    assert value == close([1.0, 2.0])


def test_sft_parity_but_for_the_weight_of_each_demonstration(batch: Named) -> None:
    """Ours weighs each demonstration alike: theirs is the mean of n_i / mean(n) times ours."""
    per_example = -batch["chosen"] / batch["chosen_num_tokens"]
    assert ours("sft", demonstrations(batch)) == close(float(per_example.mean()))
    weights = batch["chosen_num_tokens"] / batch["chosen_num_tokens"].double().mean()
    assert trl_dpo(batch, "sft") == close(float((weights * per_example).mean()), abs=1e-6)


def test_sft_reaches_the_distribution_of_winners() -> None:
    assert distance("sft", {}, (2 * SMALL.win_rate()).log(), one_length=True, world=SMALL) < 1e-4


def test_sft_token_mean_by_hand() -> None:
    value = evaluate(load("sft_token_mean"), chosen=[-2.0, -6.0], chosen_num_tokens=[2, 3])
    assert value == close([2 * 2 / 5, 6 * 2 / 5])
    assert sum(value) / 2 == close((2 + 6) / 5)  # the mean over tokens


@identity("sft_token_mean at equal lengths = sft")
def test_sft_token_mean_at_equal_lengths_is_sft(seed: int) -> Sides:
    numbers = same_length(pairs(seed), 5)
    demonstrations = {name: numbers[name] for name in ("chosen", "chosen_num_tokens")}
    return values("sft_token_mean", demonstrations), values("sft", demonstrations)


def test_sft_token_mean_parity(batch: Named) -> None:
    assert ours("sft_token_mean", demonstrations(batch)) == close(trl_dpo(batch, "sft"), abs=1e-6)
