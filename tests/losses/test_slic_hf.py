"""Proofs of `slic_hf`."""

from __future__ import annotations

from tests.losses.hand import close, on_pair
from tests.losses.identities import Sides, identity, pairs, same_length, values

NOT_TESTED = {
    "slic_hf parity": "not in TRL",
}


def test_slic_hf_by_hand() -> None:
    assert on_pair("slic_hf", delta=5.0, lam=0.1) == close(5 - 3.5 + 0.1 * 2)
    assert on_pair("slic_hf", delta=1.0, lam=0.1) == close(0.1 * 2)


@identity("slic_hf(lam=0) at lengths 1 = re_po(gamma=delta)")
def test_slic_hf_at_lengths_1_is_re_po(seed: int) -> Sides:
    numbers = same_length(pairs(seed), 1)
    return values("slic_hf", numbers, lam=0.0), values("re_po", numbers, gamma=1.0)
