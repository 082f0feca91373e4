"""Completion in the shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prefopt.cli import main
from prefopt.cli.completion import complete_override, load_index
from prefopt.cli.verbs import VERBS

INDEX: dict[str, Any] = {
    "groups": {"loss": ["dpo", "simper", "simpo"], "model": ["local"]},
    "keys": ["loss.beta", "model.path", "seed"],
}


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("lo", ["loss=", "loss."]),
        ("loss=sim", ["loss=simper", "loss=simpo"]),
        ("loss.", ["loss.beta="]),
        ("se", ["seed="]),
        ("seed=", []),
        ("nothing", []),
    ],
)
def test_completion_of_overrides(prefix: str, expected: list[str]) -> None:
    assert complete_override(prefix, INDEX) == expected


def test_completion_of_files(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other.json").touch()
    found = complete_override(f"model.path={tmp_path}/o", INDEX)
    assert found == [f"model.path={tmp_path}/one/", f"model.path={tmp_path}/other.json"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "prefopt" in capsys.readouterr().out


def test_a_tab_in_the_shell(tmp_path: Path) -> None:
    """The protocol of argcomplete, as its scripts speak it: the line in, the words out."""
    load_index()  # finding them takes seconds; an answer reads them from the cache

    def tab(line: str) -> list[str]:
        out = tmp_path / "out"
        asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_SHELL": "bash",
                 "_ARGCOMPLETE_SUPPRESS_SPACE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(out), "COMP_LINE": line,
                 "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}  # fmt: skip
        call = [sys.executable, "-c", "from prefopt.cli import main; main()"]
        subprocess.run(call, env={**os.environ, **asked}, check=False, capture_output=True)
        return out.read_text().splitlines()

    assert set(tab("prefopt ")) >= set(VERBS)
    assert set(tab("prefopt train loss=simp")) == {"loss=simper", "loss=simpo"}
    assert "--device" in tab("prefopt plan --d")


def test_what_is_known_covers_verbs_losses_and_options() -> None:
    found = load_index()
    assert found["verbs"].keys() == VERBS.keys()
    assert set(found["verbs"]["losses"]["commands"]) == {"check", "docs", "show"}
    assert {"dpo", "kto", "simpo"} <= set(found["groups"]["loss"])
    assert "compat/trl_dpo" in found["groups"]["experiment"]
    assert {"loss.beta", "trainer.learning_rate", "data.path", "seed"} <= set(found["keys"])
