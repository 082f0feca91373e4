"""A package loads its public names on first use, and keeps them where modules have the same names."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest


def test_public_names_are_loaded_on_first_use_and_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "lazy_example"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from prefopt.common.lazy_package import load_lazily\nload_lazily(__name__, {'make': 'lazy_example.make'})\n"
    )
    (package / "make.py").write_text("def make():\n    return 'made'\n")
    (package / "light.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    found = import_module("lazy_example")
    light = import_module("lazy_example.light")
    assert found.light is light
    assert "lazy_example.make" not in sys.modules
    assert "make" in dir(found)
    assert found.make() == "made"
    import_module("lazy_example.make")  # sets the module as an attribute, which must not hide the function
    assert found.make() == "made"
