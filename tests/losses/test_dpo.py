"""Proofs of `dpo`."""

from __future__ import annotations

import pytest

from prefopt.testing.samples import Named
from tests.losses.hand import LOG2, close, on_pair, softplus
from tests.losses.optima import SMALL, WORLD, distance
from tests.losses.step_0 import at_reference, sides_at_step_0
from tests.losses.trl_peer import ours, trl_dpo
from tests.worlds.enumerable import EnumerableWorld


def test_dpo_by_hand() -> None:
    assert on_pair("dpo", beta=0.5) == close(softplus(-1.5))  # beta Delta = 0.5 * 3


def test_dpo_at_reference() -> None:
    assert at_reference("dpo") == close(LOG2)


def test_dpo_pulls_both_sides_alike_at_step_0() -> None:
    assert sides_at_step_0("dpo") == close((-0.5, 0.5))


def test_dpo_parity(batch: Named) -> None:
    theirs = trl_dpo(batch, "sigmoid")
    assert ours("dpo", batch) == close(theirs, abs=1e-6)


@pytest.mark.parametrize(("beta", "tolerance", "world"), [(0.3, 1e-3, SMALL), (1.0, 1e-4, WORLD), (3.0, 1e-4, SMALL)])
def test_dpo_reaches_the_tilted_reference(beta: float, tolerance: float, world: EnumerableWorld) -> None:
    assert distance("dpo", {"beta": beta}, world.reward / beta, world=world) < tolerance
