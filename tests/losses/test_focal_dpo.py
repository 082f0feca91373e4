"""Proofs of `focal_dpo`."""

from __future__ import annotations

import math

import pytest

from prefopt.losses.focal_dpo import FocalDPO
from tests.losses.hand import LOG2, close, on_pair, sigmoid, softplus
from tests.losses.identities import Sides, identity, pairs, values
from tests.losses.step_0 import at_reference, slope

NOT_TESTED = {
    "focal_dpo parity": "not in TRL",
}


def test_focal_dpo_by_hand() -> None:
    assert on_pair("focal_dpo", beta=0.5, gamma=0.5) == close(math.sqrt(sigmoid(1.5)) * softplus(-1.5))


def test_focal_dpo_at_reference() -> None:
    assert at_reference("focal_dpo", gamma=0.5) == close(LOG2 / math.sqrt(2))


def test_focal_dpo_above_its_bound_would_unlearn() -> None:
    # dL/dz at 0 is 2^-gamma / 2 * (gamma log 2 - 1): the sign turns at gamma = 1 / log 2
    assert slope(FocalDPO(gamma=1.4)) == pytest.approx(2**-1.4 / 2 * (1.4 * LOG2 - 1))
    assert slope(FocalDPO(gamma=1.4)) < 0
    with pytest.raises(ValueError, match=r"below 1\.443"):
        FocalDPO(gamma=1.45)
    with pytest.raises(ValueError, match=r"below 1\.443"):
        FocalDPO(gamma=2.0)  # that of a third-party note


@identity("focal_dpo(gamma=0.0) = dpo")
def test_focal_dpo_is_dpo(seed: int) -> Sides:
    return values("focal_dpo", pairs(seed), gamma=0.0), values("dpo", pairs(seed))
