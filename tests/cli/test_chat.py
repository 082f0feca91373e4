"""`prefopt chat`: answers to what is piped in."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from prefopt.cli import main
from prefopt.evaluate.conversation import Conversation

Capture = pytest.CaptureFixture[str]


def test_chat_answers_what_is_piped_in(tuned: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    shown: list[list[str]] = []

    def ask(self: Conversation, text: str, tell: Any, images: Any) -> str:
        heard.append(text)
        shown.append(images)
        tell("an \x1b[31manswer")
        return ""

    monkeypatch.setattr(Conversation, "ask", ask)
    monkeypatch.setattr(sys, "stdin", io.StringIO("first\n\n/reset\n/what\n/image a b.png\nsecond\n/quit\nthird\n"))
    assert main(["chat", str(tuned)]) == 0
    out = capsys.readouterr().out
    assert heard == ["first", "second"]
    assert shown == [[], ["a b.png"]]
    assert "\x1b" not in out
    assert out.splitlines()[0].endswith("[31manswer")
    assert "(new conversation)" in out
    assert "/quit or Ctrl-D ends the chat" in out  # for an unknown command
