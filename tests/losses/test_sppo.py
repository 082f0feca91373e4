"""Proofs of `sppo`, `sppo_soft`."""

from __future__ import annotations

from prefopt.testing.samples import Named
from tests.losses.hand import close, on_pair, sigmoid
from tests.losses.identities import Sides, identity, pairs, replaced, values
from tests.losses.step_0 import at_reference, turns_back_at
from tests.losses.trl_peer import ours, trl_dpo

NOT_TESTED = {
    "sppo_soft parity": "not in TRL",
    "sppo_soft at_reference": "depends on the scores",
}


def test_sppo_by_hand() -> None:
    assert on_pair("sppo", beta=0.1) == close((1 - 5) ** 2 + (-2 + 5) ** 2)


def test_sppo_at_reference() -> None:
    assert at_reference("sppo", beta=0.1) == close(50.0)  # 1 / (2 beta^2)


def test_sppo_turns_back_past_its_target() -> None:
    assert turns_back_at(2.0, "sppo", beta=0.25)  # rho_w = 1/(2 beta)


@identity("sppo = 2 (cal_dpo - dpo(beta=1))", tolerance=1e-06)
def test_sppo_from_cal_dpo(seed: int) -> Sides:  # values near 5e5: 1e-6 is 2e-12 of them
    return values("sppo", pairs(seed)), 2 * (values("cal_dpo", pairs(seed)) - values("dpo", pairs(seed), beta=1.0))


def test_sppo_parity(batch: Named) -> None:
    theirs = trl_dpo(batch, "sppo_hard", beta=0.2)
    assert ours("sppo", batch, beta=0.2) == close(theirs, abs=1e-6)


def test_sppo_soft_by_hand() -> None:
    target = (sigmoid(1.25) - 0.5) / 0.1
    assert on_pair("sppo_soft", beta=0.1) == close((1 - target) ** 2 + (-2 + target) ** 2)


@identity("sppo_soft at a sure win = sppo", tolerance=1e-06)
def test_sppo_soft_at_a_sure_win_is_sppo(seed: int) -> Sides:
    numbers = pairs(seed)
    return values("sppo_soft", replaced(numbers, chosen_score=numbers["rejected_score"] + 100)), values("sppo", numbers)
