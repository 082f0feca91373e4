"""The code keeps to its plan: layers, sizes, imports and names, each within its bound; `tests/house.py` measures."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from prefopt.losses import MENU
from tests.house import FIGURES
from tests.source import LAYERS, House

# Where a figure still misses its goal, what it is allowed to be; a bound rises only with what prefopt can do.
NOT_YET = {
    "lines": 53_800,
}


@pytest.fixture(scope="module")
def house() -> House:
    return House()


@pytest.mark.parametrize("name", FIGURES)
def test_each_figure_stays_within_its_bound(name: str, house: House) -> None:
    figure = FIGURES[name]
    value = figure.value(house)
    assert value <= NOT_YET.get(name, figure.goal), "\n".join(
        [f"{figure.title}: {value}", *(figure.places(house) if figure.places else [])]
    )


def test_every_package_has_a_layer(house: House) -> None:
    assert {module.layer for module in house.modules.values()} <= {"", *LAYERS}


def test_no_module_imports_the_public_names(house: House) -> None:
    assert not house.imports_of_root()


def test_losses_load_torch_and_nothing_heavier() -> None:
    everything = "from prefopt.losses import MENU, load_class\nfor name in MENU: load_class(name)"
    code = f"{everything}\nimport sys; print('\\n'.join(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    modules = {name.split(".")[0] for name in out.split()}
    heavy = {"transformers", "hydra", "omegaconf", "wandb", "datasets", "accelerate", "rich", "pandas", "matplotlib"}
    assert "torch" in modules
    assert not modules & heavy


# Files that hold names of methods as values of a user's option or as a demonstration, not as facts about methods.
MAY_NAME_METHODS = {
    "prefopt.compare.demo": "the methods that the demo shows",
    "prefopt.cli.loading": "the default method for each kind of data",
    "prefopt.compare.spec": "the default methods of a comparison",
    "prefopt.plugin": "the kind of ranking that is called pointwise",
    "prefopt.worlds.build": "a world's base model is trained with SFT",
}


def test_nobody_knows_a_method_by_its_name(house: House) -> None:
    """Facts about a method are declared on its plugin; `migrate` and `testing.peers` translate others' names."""
    found = [
        f"{module.at(node.lineno)} names {node.value}"
        for module in house.modules.values()
        if module.layer not in ("losses", "migrate") and module.name not in MAY_NAME_METHODS
        if not module.name.startswith("prefopt.testing.peers.")
        for node in module.nodes
        if isinstance(node, ast.Constant) and node.value in set(MENU)
    ]
    assert not found


def test_every_package_is_installed(house: House) -> None:
    """`setup.py` finds packages by their `__init__.py`."""
    folders = {module.path.parent for module in house.modules.values()}
    assert all((folder / "__init__.py").exists() for folder in folders)
