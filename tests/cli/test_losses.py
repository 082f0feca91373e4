"""`prefopt losses`: the menu comes from kept facts, which are those of the plugins, and loads no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from prefopt.cli import loss_menu, loss_plugins, main
from prefopt.losses import MENU


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path))


def shown(capsys: pytest.CaptureFixture[str]) -> object:
    assert main(["losses", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_kept_facts_are_those_of_the_plugins(capsys: pytest.CaptureFixture[str]) -> None:
    live = shown(capsys)
    assert [loss["name"] for loss in live] == sorted(MENU)  # type: ignore[attr-defined]
    assert json.loads(loss_menu.facts_file().read_text()) == live
    assert shown(capsys) == live


def test_facts_of_another_source_are_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown(capsys)
    monkeypatch.setattr(loss_menu, "source", lambda: "another")
    monkeypatch.setattr(loss_plugins, "describe_all", lambda: [{"name": "live"}])
    assert shown(capsys) == [{"name": "live"}]


@pytest.mark.parametrize("content", ["", "[{", "{"])
def test_a_broken_file_of_facts_is_made_again(content: str, capsys: pytest.CaptureFixture[str]) -> None:
    live = shown(capsys)
    loss_menu.facts_file().write_text(content)
    assert shown(capsys) == live == json.loads(loss_menu.facts_file().read_text())


def test_a_named_loss_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses", "simpo", "dpo"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("simpo: Reference-free Bradley-Terry loss on length-averaged log-probs, with a margin.\n")
    assert "\nL = -log sigmoid(beta * (lw - ll - gamma_beta_ratio))" in text
    assert "\nloss.gamma_beta_ratio=0.5  target margin in nats/token; 0.1 to 0.8\n" in text
    assert "\nreads    pairs; lengths\n" in text
    assert "\n\ndpo: " in text
    assert main(["losses", "dpo", "--json"]) == 0
    assert [loss["name"] for loss in json.loads(capsys.readouterr().out)] == ["dpo"]
    assert main(["losses", "simpoo"]) == 2
    assert "did you mean 'simpo'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", MENU)
def test_every_loss_can_be_described(name: str) -> None:
    text = loss_plugins._described(loss_plugins.describe(name))
    assert all(f"loss.{key}=" in text for key in loss_plugins.describe(name)["hyperparameters"])


def test_losses_of_other_packages_are_in_the_menu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loss_menu, "choices", lambda: {"loss": [*sorted(MENU), "own"]})
    monkeypatch.setattr(loss_plugins, "describe_all", lambda: [{"name": "own"}])
    assert shown(capsys) == [{"name": "own"}]


def test_the_menu_loads_no_torch(capsys: pytest.CaptureFixture[str]) -> None:
    shown(capsys)
    code = ("import sys; from prefopt.cli import main; main(['losses', '--json'])\n"
            "print('torch' in sys.modules, file=sys.stderr)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "False"
    assert [loss["name"] for loss in json.loads(done.stdout)] == sorted(MENU)
