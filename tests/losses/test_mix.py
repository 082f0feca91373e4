"""Proofs of `mix`."""

from __future__ import annotations

import math
from typing import Any

import pytest

from prefopt.losses.registry import load
from prefopt.testing.numbers import build, call, to_tensor
from prefopt.testing.samples import Named
from tests.losses.hand import PAIR, THREE, close, on_pair, softplus
from tests.losses.identities import Sides, identity, pairs, values
from tests.losses.trl_peer import ours, trl_dpo

NOT_TESTED = {
    "mix at_reference": "the weighted sum of its terms",
}


def test_mix_by_hand() -> None:
    terms = {"dpo": 0.8, "bco_pair_zero": 0.2, "sft": 1.0}
    value = on_pair("mix", terms=terms, options={"dpo": {"beta": 0.5}, "bco_pair_zero": {"beta": 0.5}})
    assert value == close(0.8 * softplus(-1.5) + 0.2 * (softplus(-0.5) + softplus(-1.0)) + 1.0)


def test_mix_is_that_of_mpo_by_default() -> None:
    delta = 0.1 * (1 - 2) / 2  # the threshold of `bco_pair`
    bco = softplus(delta - 0.1) + softplus(-0.2 - delta)
    assert on_pair("mix") == close(0.8 * softplus(-0.3) + 0.2 * bco + 1.0)


def test_mix_has_the_threshold_of_mpo() -> None:
    """Rewards of 2 and 1: the term of `bco_pair` is 0.948; a threshold of 0, that of TRL from 0.29 on, would make it
    1.440."""
    first = {"chosen": [2.0], "rejected": [1.0], "ref_chosen": [0.0], "ref_rejected": [0.0]}
    one = {"chosen_num_tokens": [1], "rejected_num_tokens": [1]}
    for term, value in (("bco_pair", 0.948), ("bco_pair_zero", 1.440)):
        loss = load("mix", terms={"dpo": 0.8, term: 0.2, "sft": 1.0}, options={term: {"beta": 1.0}})
        output = call(loss, build(loss.needs, {name: to_tensor(name, v) for name, v in (first | one).items()}))
        assert output.metrics[term].item() == close(value, abs=5e-4)
    assert load("mix").terms == {"dpo": 0.8, "bco_pair": 0.2, "sft": 1.0}  # type: ignore[attr-defined]


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


def test_mix_has_the_epsilon_of_the_term_that_moves_policies() -> None:
    loss: Any = load("mix", terms={"epsilon_dpo": 1.0, "sft": 0.1}, options={"epsilon_dpo": {"epsilon": 0.05}})
    assert loss.epsilon == 0.05
    assert not hasattr(load("mix"), "epsilon")


@identity("mix(terms={'dpo': 1.0, 'sft': 0.7}) = irpo(alpha=0.7)")
def test_mix_is_irpo(seed: int) -> Sides:
    return values("mix", pairs(seed), terms={"dpo": 1.0, "sft": 0.7}), values("irpo", pairs(seed), alpha=0.7)


@identity("mix(terms={'cpo': 1.0, 'sft': 0.7}, options={'cpo': {'alpha': 0.0}}) = cpo(alpha=0.7)")
def test_mix_is_cpo(seed: int) -> Sides:
    return values("mix", pairs(seed), terms={"cpo": 1.0, "sft": 0.7}, options={"cpo": {"alpha": 0.0}}), values(
        "cpo", pairs(seed), alpha=0.7
    )


def test_mix_parity(batch: Named) -> None:
    theirs = trl_dpo(batch, ["sigmoid", "bco_pair"], loss_weights=[0.8, 0.2])
    assert ours("mix", batch, terms={"dpo": 0.8, "bco_pair_zero": 0.2}) == close(theirs, abs=1e-6)
