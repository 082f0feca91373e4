"""What several processes make together."""

from __future__ import annotations

from typing import Any

import pytest

from prefopt.common import processes
from prefopt.errors import UserError


def beside(other: Any, patch: pytest.MonkeyPatch) -> None:
    """As if a second process had given `other`."""
    patch.setattr(processes, "process_count", lambda: 2)
    patch.setattr(processes, "gather_object", lambda mine: [*mine, other])


def test_each_gives_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.from_all_processes(lambda: {0: "a"}) == {0: "a"}
    beside({1: "b"}, monkeypatch)
    assert processes.from_all_processes(lambda: {0: "a"}) == {0: "a", 1: "b"}


def test_what_one_refuses_all_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> dict[int, str]:
        raise UserError("mine is not finite")

    beside({1: "b"}, monkeypatch)
    with pytest.raises(UserError, match="mine"):
        processes.from_all_processes(refuse)
    beside(UserError("theirs is not finite"), monkeypatch)
    with pytest.raises(UserError, match="theirs"):
        processes.from_all_processes(lambda: {0: "a"})
