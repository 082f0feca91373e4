"""Every identity between losses, on random batches in float64; and that no loss stands outside of all of them."""

from __future__ import annotations

import pytest
import torch

from prefopt.losses import MENU
from prefopt.testing.identities import IDENTITIES, Identity


@pytest.mark.parametrize("identity", IDENTITIES, ids=lambda i: i.claim)
@pytest.mark.parametrize("seed", range(3))
def test_identity(identity: Identity, seed: int) -> None:
    left, right = identity.sides(seed)
    torch.testing.assert_close(left, right, rtol=0, atol=identity.tolerance)


def test_every_loss_takes_part_in_one() -> None:
    named = {name for identity in IDENTITIES for name in identity.losses}
    assert set(MENU) - named == set()
