"""Proofs of `orpo`."""

from __future__ import annotations

import math
from types import SimpleNamespace

from prefopt.testing.samples import Named
from tests.losses.hand import close, on_pair, softplus
from tests.losses.identities import Sides, identity, pairs, values
from tests.losses.trl_peer import mean_logps, ours

NOT_TESTED = {
    "orpo optimum": "its optimum is no tilt of the reference",
}


def test_orpo_by_hand() -> None:
    chosen, rejected = math.exp(-1), math.exp(-1.375)
    odds_ratio = math.log(chosen / (1 - chosen)) - math.log(rejected / (1 - rejected))
    assert on_pair("orpo", lam=0.25) == close(1.0 + 0.25 * softplus(-odds_ratio))


@identity("orpo(lam=0) = sft")
def test_orpo_without_odds_is_sft(seed: int) -> Sides:
    numbers = pairs(seed)
    demonstrations = {name: numbers[name] for name in ("chosen", "chosen_num_tokens")}
    return values("orpo", numbers, lam=0.0), values("sft", demonstrations)


def test_orpo_parity(batch: Named) -> None:
    """The odds term is theirs; our likelihood is per example and without the prompt, theirs per micro-batch with it."""
    from trl.experimental.orpo import ORPOTrainer

    stub = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    chosen, rejected = mean_logps(batch)
    odds, *_ = ORPOTrainer.odds_ratio_loss(stub, chosen, rejected)
    assert ours("orpo", batch, lam=0.3) == close(float((-chosen - odds).mean()), abs=1e-6)
