"""Judges that are functions: found, called, named where they fail, and void once their file is edited."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from prefopt.errors import UserError
from prefopt.evaluate.judge import function, rule, wins

LONGER = "def fn(prompts, first, second):\n    return [float(len(a) > len(b)) for a, b in zip(first, second)]\n"


def test_the_rule_is_the_file_that_the_function_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module that names it may only hand on one from another file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge_inner.py").write_text(LONGER)
    (tmp_path / "judge_outer.py").write_text("from judge_inner import fn\n")
    first = rule("judge_outer:fn")
    (tmp_path / "judge_inner.py").write_text(LONGER + "# other\n")
    assert rule("judge_outer:fn") != first
    for name in ("judge_inner", "judge_outer"):
        monkeypatch.delitem(sys.modules, name)


def test_a_script_finds_a_judge_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a script has the script's folder, not the current one."""
    (tmp_path / "near.py").write_text(LONGER)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "bin"), *(place for place in sys.path if place)])
    before = list(sys.path)
    assert importlib.util.find_spec("near") is None
    assert function("near:fn").__name__ == "fn"
    with pytest.raises(UserError, match="judge=broken:fn: ZeroDivisionError: division by zero;"):
        function("broken:fn")
    assert sys.path == before
    monkeypatch.delitem(sys.modules, "near")


def test_a_judge_that_raises_is_named() -> None:
    def down(*asked: object) -> list[float]:
        raise ConnectionError("the service is down\ntry later")

    with pytest.raises(UserError, match=r"the judge .*down failed: ConnectionError: the service is down; it is called"):
        wins(down, ["p"], ["a"], ["b"])
    with pytest.raises(UserError, match="is not a function"):
        function("sys:path")
