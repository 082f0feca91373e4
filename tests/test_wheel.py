"""The wheel is complete: installed into an environment of its own, it runs from another folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
SOURCES = ("prefopt", "conf", "pyproject.toml", "setup.py", "README.md", "LICENSE")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since setuptools writes beside the sources."""
    work = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, work / name)
    command = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", "dist", "."]
    subprocess.run(command, check=True, cwd=work)
    (built,) = (work / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel; its dependencies are those of the tests' own environment."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    subprocess.run([*PIP, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    dependencies = [path for path in sys.path if path.endswith("-packages")]
    (site / "dependencies.pth").write_text("\n".join(dependencies))
    return folder


def run(environment: Path, cwd: Path, *words: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_"))}
    command = [str(environment / "bin" / words[0]), *words[1:]]
    return subprocess.run(command, check=True, cwd=cwd, env=clean, stdout=subprocess.PIPE, text=True).stdout


def test_holds_what_is_not_python(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"prefopt/conf/{path.relative_to(ROOT / 'conf')}" for path in (ROOT / "conf").rglob("*.yaml")}
    for ending in ("*.jinja", "*.html", "*.css"):
        wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "prefopt").rglob(ending)}
    assert sorted({*wanted, "prefopt/py.typed"} - packed) == []


def test_runs_from_another_folder(environment: Path, tmp_path: Path) -> None:
    where = run(environment, tmp_path, "python", "-c", "import prefopt; print(prefopt.__file__)")
    assert Path(where.strip()).is_relative_to(environment)
    menu = {loss["name"] for loss in json.loads(run(environment, tmp_path, "prefopt", "losses", "--json"))}
    assert {"dpo", "kto", "simpo"} <= menu
    config = run(environment, tmp_path, "prefopt", "train", "loss=simpo", "loss.beta=3", "--cfg", "job")
    assert "beta: 3.0" in config
