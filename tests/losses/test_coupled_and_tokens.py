"""Losses that couple a batch, carry state, or read per-token figures, against arithmetic."""

from __future__ import annotations

import math

import pytest
import torch

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from prefopt.testing.numbers import build, call, to_tensor
from tests.losses.hand import PAIR, on_pair, softplus

close = pytest.approx

# Delta: 3, -1, 0.5;  d: 3.5, -0.5, 1;  d_ref: 0.5, 0.5, 0.5
THREE = {
    "chosen": [-2.0, -2.5, -1.0],
    "rejected": [-5.5, -2.0, -2.0],
    "ref_chosen": [-3.0, -2.0, -1.0],
    "ref_rejected": [-3.5, -2.5, -1.5],
    "chosen_num_tokens": [2, 5, 1],
    "rejected_num_tokens": [4, 2, 2],
    "ids": [11, 12, 13],
}


def test_aot_by_hand() -> None:
    batch = THREE | {"ref_rejected": [-3.5, -3.0, -1.0]}  # d_ref 0.5, 1, 0; sorted 0, 0.5, 1; d sorted -0.5, 1, 3.5
    expected = [softplus(-0.5 * (3.5 - 1)), softplus(-0.5 * (-0.5 - 0)), softplus(-0.5 * (1 - 0.5))]
    assert evaluate(load("aot", beta=0.5), **batch) == close(expected)


def test_dr_dpo_by_hand() -> None:
    losses = [softplus(-0.5 * delta) for delta in (3, -1, 0.5)]
    soft = -2 * math.log(sum(math.exp(-value / 2) for value in losses) / 3)
    assert evaluate(load("dr_dpo", beta=0.5, beta_prime=2.0), **THREE) == close([soft] * 3)


def test_beta_dpo_by_hand() -> None:
    # no filter: M = 0.1 * mean(3, -1, 0.5) = 0.1 * 2.5/3, and beta grows with the mean less M
    mean = 2.5 / 3
    beta = 0.5 * (1 + 0.6 * (mean - 0.1 * mean))
    expected = [softplus(-beta * delta) for delta in (3, -1, 0.5)]
    assert evaluate(load("beta_dpo", beta=0.5, keep=1.0), **THREE) == close(expected)


def test_beta_dpo_keeps_a_share_and_its_mean() -> None:
    batch = {key: value * 5 for key, value in THREE.items()} | {"ids": list(range(15))}
    values = evaluate(load("beta_dpo", alpha=0.0, keep=0.8), **batch)
    kept = [i for i, value in enumerate(values) if value > 0]
    assert len(kept) == 12
    plain = evaluate(load("dpo"), **batch)
    assert sum(values) / 15 == close(sum(plain[i] for i in kept) / 12)


def test_beta_dpo_draws_by_id_not_by_place() -> None:
    batch = {key: value * 5 for key, value in THREE.items()} | {"ids": list(range(15))}
    values = evaluate(load("beta_dpo"), **batch)
    backwards = evaluate(load("beta_dpo"), **{key: value[::-1] for key, value in batch.items()})
    assert values == close(backwards[::-1])


def test_beta_dpo_draws_less_often_far_from_the_mean() -> None:
    """A pair 3 deviations off has weight e^-4.5 against about 1: over 200 batches it is rarely among the kept half."""
    count = {"far": 0, "near": 0}
    for seed in range(200):
        delta = [0.0, 0.1, -0.1, 0.05, -0.05, 3.0]
        deviation = torch.tensor(delta).std().item()
        state = {
            "mean": torch.tensor(0.0, dtype=torch.float64),
            "deviation": torch.tensor(deviation / 0.9 * 0.6, dtype=torch.float64),
            "batches": torch.tensor(seed),
        }
        values = evaluate(
            load("beta_dpo", keep=0.5),
            chosen=delta,
            rejected=[0.0] * 6,
            ref_chosen=[0.0] * 6,
            ref_rejected=[0.0] * 6,
            ids=list(range(6)),
            state=state,
        )
        count["far"] += values[5] > 0
        count["near"] += values[0] > 0
    assert count["far"] < count["near"] / 3


def test_alpha_dpo_by_hand() -> None:
    d = [0.375, 0.5, 0.0]  # -1 + 1.375, -0.5 + 1, -1 + 1
    moved = [d[0] - (-1.5 + 0.875), d[1] - (-0.4 + 1.25), d[2] - (-1.0 + 0.75)]
    mean = sum(moved) / 3
    deviation = math.sqrt(sum((m - mean) ** 2 for m in moved) / 2)
    z = [(m - 0.1 * mean) / (0.1 * deviation) for m in moved]
    expected = [softplus(-2 * (a - 0.5 - 0.2 * b)) for a, b in zip(d, z, strict=True)]
    assert evaluate(load("alpha_dpo", alpha=0.2), **THREE) == close(expected)


def test_a_batch_without_deviation_has_no_z_score() -> None:
    """At step 0 every margin is the same: 0/0 must be 0, and rounding of 1e-6 nats must not become a z-score of 1."""
    same = THREE | {"chosen": THREE["ref_chosen"], "rejected": THREE["ref_rejected"]}
    plain = evaluate(load("simpo"), **same)
    assert evaluate(load("alpha_dpo", alpha=10.0), **same) == close(plain)
    rounded = same | {"chosen": [value + error for value, error in zip(same["chosen"], (1e-6, 0, -1e-6), strict=True)]}
    assert evaluate(load("alpha_dpo", alpha=10.0), **rounded) == close(plain, abs=1e-5)
    assert sum(evaluate(load("beta_dpo"), **same)) / 3 == close(math.log(2))


def test_running_moments_carry_over() -> None:
    loss = load("beta_dpo", keep=1.0)
    batch = build(loss.needs, {name: to_tensor(name, value) for name, value in THREE.items()})
    first = call(loss, batch)
    assert first.state is not None
    assert first.state["mean"].item() == close(0.1 * 2.5 / 3)
    second = call(loss, batch, first.state)
    assert second.state is not None
    assert second.state["mean"].item() == close((0.09 + 0.1) * 2.5 / 3)
    assert second.state["batches"].item() == 2


TOKENS = {
    "chosen_token": [[-1.0, -1.0]],
    "ref_chosen_token": [[-1.25, -1.75]],  # rho_t 0.25, 0.75
    "rejected_token": [[-2.0, -1.5, -1.0, -1.0]],
    "ref_rejected_token": [[-1.0, -1.0, -1.0, -0.5]],  # rho_t -1, -0.5, 0, -0.5
}


def test_ld_dpo_by_hand() -> None:
    rejected = -1.0 - 0.5 + 0.25 * (0 - 0.5)  # past two shared tokens, a quarter
    assert evaluate(load("ld_dpo", beta=0.5, alpha=0.25), **TOKENS) == close([softplus(-0.5 * (1.0 - rejected))])


def test_sam_po_by_hand() -> None:
    """Two of the four rejected tokens: the value is one of the six that are possible, and each comes up over ids."""
    ratios = [-1.0, -0.5, 0.0, -0.5]
    possible = {round(softplus(-0.5 * (1.0 - ratios[i] - ratios[j])), 9) for i in range(4) for j in range(i)}
    found = {round(evaluate(load("sam_po", beta=0.5), **TOKENS, ids=[i])[0], 9) for i in range(60)}
    assert found == possible


def test_sam_po_draws_once_for_policy_and_reference() -> None:
    same = TOKENS | {"ref_chosen_token": TOKENS["chosen_token"], "ref_rejected_token": TOKENS["rejected_token"]}
    assert evaluate(load("sam_po"), **same, ids=[5]) == close([math.log(2)])


def test_wpo_by_hand() -> None:
    statistics = {
        "chosen_log_sum_sq": [[-0.5, -0.75]],  # mean of log p less this: (-0.5 - 0.25) / 2
        "rejected_log_sum_sq": [[-0.5, -0.5, -0.5, -0.5]],  # -1.375 + 0.5
    }
    weight = math.exp(-0.375) * math.exp(-0.875)
    assert evaluate(load("wpo", beta=0.5), **PAIR, **statistics) == close([weight * softplus(-1.5)])
    sure = {"chosen_log_sum_sq": [[-3.0, -3.0]], "rejected_log_sum_sq": [[-3.0] * 4]}
    assert evaluate(load("wpo", beta=0.5), **PAIR, **sure) == close([softplus(-1.5)])  # min(1, ...)


KL = {"chosen_kl": [[0.25, 0.5]], "rejected_kl": [[0.5, 0.5, 0.25, 0.25]]}


def test_tdpo1_by_hand() -> None:
    assert evaluate(load("tdpo1", beta=0.5), **PAIR, **KL) == close([softplus(-0.5 * (3 - (1.5 - 0.75)))])


def test_tdpo2_by_hand() -> None:
    value = evaluate(load("tdpo2", beta=0.5, alpha=0.4), **PAIR, **KL)
    assert value == close([softplus(-0.5 * (3 - 0.4 * 0.75))])


def test_tdpo2_holds_the_chosen_kl_still() -> None:
    numbers = {name: to_tensor(name, value) for name, value in (PAIR | KL).items()}
    gradients = {}
    for name in ("tdpo1", "tdpo2"):
        kl = numbers["chosen_kl"].clone().requires_grad_()
        loss = load(name)
        sums = numbers["chosen"].clone().requires_grad_()
        call(loss, build(loss.needs, numbers | {"chosen_kl": kl, "chosen": sums})).loss.sum().backward()
        gradients[name] = kl.grad
    assert gradients["tdpo2"] is None
    assert gradients["tdpo1"] is not None


ENTROPY = {"chosen_ref_entropy": [[1.0, 2.0]], "rejected_ref_entropy": [[1.0, 1.0, 0.5, 0.5]]}


def test_mallows_dpo_by_hand() -> None:
    phi = -0.29 * math.log((1.5 + 0.75) / 2 / math.log(50))
    value = evaluate(load("mallows_dpo", vocab_size=50, beta=0.5), **PAIR, **ENTROPY)
    assert value == close([softplus(-0.5 * phi * 3)])


def test_rainbow_po_by_hand() -> None:
    phi = -0.29 * math.log((1.5 + 0.75) / 2 / math.log(50))
    target = 0.25 * (-1.5 + 0.875) + 0.75 * 0.1
    value = evaluate(load("rainbow_po", vocab_size=50), **PAIR, **ENTROPY)
    assert value == close([softplus(-10 * phi * (0.375 - target))])


def test_mix_by_hand() -> None:
    terms = {"dpo": 0.8, "bco_pair": 0.2, "sft": 1.0}
    value = on_pair("mix", terms=terms, options={"dpo": {"beta": 0.5}, "bco_pair": {"beta": 0.5}})
    assert value == close(0.8 * softplus(-1.5) + 0.2 * (softplus(-0.5) + softplus(-1.0)) + 1.0)


def test_mix_logs_each_term_unweighted() -> None:
    loss = load("mix", terms={"dpo": 0.5, "sft": 0.0, "simpo": 2.0})
    output = call(loss, build(loss.needs, {name: to_tensor(name, value) for name, value in PAIR.items()}))
    assert set(output.metrics) == {"dpo", "simpo"}  # a weight of 0 leaves a term out
    assert output.metrics["dpo"].item() == close(softplus(-0.3))
    assert output.loss.item() == close(0.5 * softplus(-0.3) + 2 * on_pair("simpo"))


def test_mix_passes_state_on() -> None:
    loss = load("mix", terms={"beta_dpo": 1.0, "sft": 0.1}, options={"beta_dpo": {"keep": 1.0}})
    assert loss.needs.state
    assert loss.needs.coupled
    batch = build(loss.needs, {name: to_tensor(name, value) for name, value in THREE.items()})
    first = call(loss, batch)
    assert first.state is not None
    assert first.state["beta_dpo.batches"].item() == 1
    alone = load("beta_dpo", keep=1.0)
    second = call(loss, batch, first.state)
    expected = call(alone, batch, call(alone, batch).state)
    assert second.metrics["beta_dpo"].tolist() == close(expected.loss.tolist())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"terms": {}}, "terms"),
        ({"terms": {"dpo": 1.0, "kto": 1.0}}, "one shape of data"),
        ({"terms": {"mix": 1.0}}, "cannot mix mix"),
        ({"terms": {"nope": 1.0}}, "cannot mix nope"),
        ({"terms": {"dpo": math.nan}}, "terms"),
        ({"terms": {"dpo": 1.0}, "options": {"simpo": {}}}, "options"),
        ({"terms": {"kto": 1.0, "sft": 1.0}}, "only pairs have a chosen side"),
    ],
)
def test_mix_refuses(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("mix", **settings)
