"""Proofs of `hinge`."""

from __future__ import annotations

from prefopt.testing.samples import Named
from tests.losses.hand import close, on_pair
from tests.losses.step_0 import at_reference
from tests.losses.trl_peer import ours, trl_dpo

NOT_TESTED = {
    "hinge optimum": "a kink, met by many policies",
}


def test_hinge_by_hand() -> None:
    assert on_pair("hinge", beta=0.1) == close(1 - 0.3)
    assert on_pair("hinge", beta=0.5) == 0.0  # 1 - 1.5


def test_hinge_at_reference() -> None:
    assert at_reference("hinge") == close(1.0)


def test_hinge_parity(batch: Named) -> None:
    theirs = trl_dpo(batch, "hinge", beta=0.7)
    assert ours("hinge", batch, beta=0.7) == close(theirs, abs=1e-6)
