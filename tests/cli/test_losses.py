"""`prefopt losses`: the menu comes from kept facts, which are those of the plugins, and loads no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.resources import files

import pytest

from prefopt.cli import loss_menu, loss_plugins, main
from prefopt.losses import MENU


def kept() -> dict[str, object]:
    return dict(json.loads((files("prefopt.losses") / loss_menu.FACTS).read_text(encoding="utf-8")))


def test_the_kept_facts_are_those_of_the_plugins() -> None:
    live = json.loads(json.dumps([loss_plugins.describe(name) for name in sorted(MENU)]))
    assert kept() == {"source": loss_menu.source(), "losses": live}, "run `prefopt losses docs`"


def test_facts_of_another_source_are_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loss_menu, "source", lambda: "another")
    monkeypatch.setattr(loss_plugins, "describe_all", lambda: [{"name": "live"}])
    assert main(["losses", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"name": "live"}]


def test_losses_of_other_packages_are_in_the_menu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loss_menu, "choices", lambda: {"loss": [*sorted(MENU), "own"]})
    monkeypatch.setattr(loss_plugins, "describe_all", lambda: [{"name": "own"}])
    assert main(["losses", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"name": "own"}]


def test_the_menu_loads_no_torch() -> None:
    code = ("import sys; from prefopt.cli import main; main(['losses', '--json'])\n"
            "print('torch' in sys.modules, file=sys.stderr)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "False"
    assert [loss["name"] for loss in json.loads(done.stdout)] == sorted(MENU)
