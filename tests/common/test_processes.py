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


def test_what_the_first_process_makes_alone_asks_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others, which waited for the whole, took the answer of a part for it."""
    sent: list[Any] = []
    monkeypatch.setattr(processes, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "broadcast_object_list", lambda answer: sent.append(answer[0]))

    def whole() -> list[str]:
        return [processes.from_first_process(lambda: "part"), *processes.from_all_processes(lambda: {"all": 1})]

    assert processes.from_first_process(whole) == ["part", "all"]
    assert sent == [["part", "all"]]
    assert processes.from_first_process(lambda: "next") == "next", "together again"
    assert sent[1:] == ["next"]
