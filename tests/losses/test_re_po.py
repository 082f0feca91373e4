"""Proofs of `re_po`."""

from __future__ import annotations

from tests.losses.hand import close, on_pair

NOT_TESTED = {
    "re_po parity": "not in TRL",
}


def test_re_po_by_hand() -> None:
    assert on_pair("re_po", gamma=0.5) == close(0.125)
    assert on_pair("re_po", gamma=0.25) == 0.0
