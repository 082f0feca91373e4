"""The world that can be written down is what it says."""

from __future__ import annotations

import pytest

from tests.worlds.enumerable import make_world


def test_its_distributions() -> None:
    world = make_world(seed=0)
    assert world.reference.exp().sum().item() == pytest.approx(1)
    assert world.win_rate() @ world.reference.exp() == pytest.approx(0.5)
    assert set(world.num_tokens.tolist()) == {1, 2, 3, 4}
    assert int((world.num_tokens == 1).sum()) == 64  # a quarter begins with the token that ends a text
