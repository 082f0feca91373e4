"""Requirements have no upper limit, and `constraints.txt` pins a tested version of each that the tests need."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def requirements(*extras: str) -> list[Requirement]:
    """The project's requirements with these extras, and with the extras that they name in turn."""
    found: list[Requirement] = []
    for text in [*PROJECT["dependencies"], *(text for extra in extras for text in EXTRAS[extra])]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"]:
            found += requirements(*requirement.extras)
        else:
            found.append(requirement)
    return found


def test_requirements_have_no_upper_limit() -> None:
    operators = {(str(r), s.operator) for r in requirements(*EXTRAS) for s in r.specifier}
    assert {operator for _, operator in operators} == {">="}, operators


def test_constraints_pin_a_version_that_satisfies_each_requirement() -> None:
    lines = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] != "#"]
    pinned = {canonicalize_name(line.name): next(iter(line.specifier)) for line in lines}
    assert {specifier.operator for specifier in pinned.values()} == {"=="}
    for requirement in requirements("test"):
        version = pinned[canonicalize_name(requirement.name)].version
        assert requirement.specifier.contains(version), f"{requirement}: constraints.txt has {version}"
