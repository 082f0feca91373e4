"""The documentation builds strictly, and every block of code in it runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prefopt.cli import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
LONG = {"distributed", "stages", "own_samples"}
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# Blocks of `python` and `bash` run; these do not.
SHOWN = {"", "text", "yaml", "json"}


def blocks(page: Path) -> list[tuple[str, str]]:
    return [(match[1], match[2]) for match in BLOCK.finditer(page.read_text())]


@pytest.fixture
def at_home(
    model_folder: Path,
    pairs_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder with the files that the pages refer to: `model` and `pairs.jsonl`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFOPT_MALLOC", "0")
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    (tmp_path / "model").symlink_to(model_folder)
    (tmp_path / "pairs.jsonl").symlink_to(pairs_file)
    return tmp_path


def run_bash(text: str) -> None:
    """Run shell commands: those of `prefopt` in this process, the others by bash."""
    for command in commands(text):
        forgiven = command.endswith("|| true")
        words = shlex.split(command.removesuffix("|| true"), comments=True)
        if words[0] == "prefopt":
            code = main(words[1:])
            assert code == 0 or (forgiven and code == 3), f"{command}: exit code {code}"
        else:
            subprocess.run(["bash", "-euo", "pipefail", "-c", command], check=True)


def commands(text: str) -> list[str]:
    """One command per line; continued lines are joined, and a here-document stays with its command."""
    lines, found = iter(text.replace("\\\n", " ").splitlines()), []
    for line in lines:
        if here := re.search(r"<<'(\w+)'", line):
            for more in lines:
                line += f"\n{more}"
                if more == here[1]:
                    break
        line = re.sub(r"\s+#\s.*$", "", line) if "<<" not in line else line
        if line.strip():
            found.append(line.strip())
    return found


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.slow) if p.stem in LONG else p for p in PAGES],
    ids=lambda p: p.stem,
)
def test_every_block_of_code_runs(page: Path, at_home: Path) -> None:
    names: dict[str, Any] = {}
    for language, text in blocks(page):
        assert language in {"python", "bash"} | SHOWN, f"{page.name}: a block of {language}"
        if language == "python":
            exec(compile(text, page.name, "exec"), names)  # the pages are this project's own
        elif language == "bash":
            run_bash(text)


@pytest.mark.slow
def test_the_site_builds_with_strict_links(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the docs extra is not installed")
    pytest.importorskip("mkdocstrings", reason="the docs extra is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site" / "planning" / "index.html").read_text()
    assert "weights gathered" in page, "the formulas come from the module's docstring"
    assert "fonts.googleapis.com" not in page, "the page loads nothing from elsewhere"
