"""Imports point one way: losses need torch alone, the trainer knows no loss, no registry and no Hydra."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "prefopt"


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print('\\n'.join(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return {name.split(".")[0] for name in out.split()}


def test_losses_load_torch_and_nothing_heavier() -> None:
    everything = "from prefopt.losses import MENU, load_class\nfor name in MENU: load_class(name)"
    heavy = {"transformers", "hydra", "omegaconf", "wandb", "datasets", "accelerate", "rich", "pandas", "matplotlib"}
    modules = loaded_by(everything)
    assert "torch" in modules
    assert not modules & heavy


def imports(folder: str) -> dict[str, set[str]]:
    found = {}
    for file in (PACKAGE / folder).rglob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
        found[str(file.relative_to(PACKAGE))] = names
    return found


FORBIDDEN = {
    "losses": ("prefopt.data", "prefopt.engine", "prefopt.train", "prefopt.cli", "prefopt.runs"),
    "data": ("prefopt.engine", "prefopt.train", "prefopt.losses", "prefopt.cli", "prefopt.runs"),
    "engine": ("prefopt.train", "prefopt.losses", "prefopt.cli", "prefopt.runs", "hydra"),
    "train": ("prefopt.losses", "prefopt.cli", "prefopt.runs", "hydra", "omegaconf"),
}
# The doctor may ask the engine what a given model thinks of the data.
ALLOWED = {"data/doctor/base_model.py": ("prefopt.engine",)}


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_imports_point_one_way(layer: str) -> None:
    for file, names in imports(layer).items():
        wrong = {n for n in names if n.startswith(FORBIDDEN[layer]) and not n.startswith(ALLOWED.get(file, ("-",)))}
        assert not wrong, f"{file} imports {sorted(wrong)}"


def test_nobody_outside_a_loss_branches_on_its_name() -> None:
    from prefopt.losses import MENU

    for layer in ("data", "engine", "train"):
        for file in (PACKAGE / layer).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Compare):
                    constants = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant)}
                    assert not constants & set(MENU), f"{file}:{node.lineno} compares with a loss's name"


def test_every_package_is_installed() -> None:
    """`setup.py` finds packages by their `__init__.py`."""
    folders = {p.parent for p in PACKAGE.rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in folders)
