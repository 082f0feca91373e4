"""Every module, object and file that the documentation names exists, and so does the package that it installs."""

from __future__ import annotations

import re
import subprocess
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "examples").rglob("*.md"),
]
DOTTED = re.compile(r"(?<![\w./-])((?:prefopt|tests)(?:\.\w+)+)")
# not `owner/repository file@commit`, which is another project's
FILE = re.compile(r"(?<![\w/.-])((?:prefopt|tests|benchmarks|conf|docs|examples)/[\w./<>*{}-]*[\w>*}])(?![@\w/-]|\.\w)")
TEST = re.compile(r"(?:`|(tests/[\w/]+\.py)::)(test_\w+)(…?)`")
OWN_URL = re.compile(r"github\.com/prefopt/prefopt/(?:blob|tree)/main/([\w./-]+)")
OWN_ANCHOR = re.compile(r"(?:main/|\()([\w./-]+\.md)#([\w-]+)")


def resolves(name: str) -> bool:
    """Whether a dotted name is a module (not imported: it may need what is not installed), or an attribute of one."""
    if (ROOT / name.replace(".", "/")).with_suffix(".py").exists():
        return True
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[cut:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


@pytest.mark.parametrize("page", sorted(PAGES), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text().replace("myloss", "dpo")  # an example's name
    names = {name for name in DOTTED.findall(text) if not name.endswith((".py", ".md"))}
    assert sorted(name for name in names if not resolves(name)) == []
    files = {*FILE.findall(text), *OWN_URL.findall(text)}
    exact = [file for file in files if not set("<*{") & set(file)]
    assert sorted(file for file in exact if not (ROOT / file).exists()) == []


@pytest.mark.parametrize("page", sorted(PAGES), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_section_that_a_page_links_to_exists(page: Path) -> None:
    for file, anchor in OWN_ANCHOR.findall(page.read_text()):
        target = ROOT / file if (ROOT / file).exists() else page.parent / file
        titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
        assert anchor in anchors, f"{file} has no section {anchor}"


@pytest.mark.parametrize("page", sorted(PAGES), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    """`test_name`, or the beginning of a name and `…`; in the file before `::`, if one is given."""
    everything = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for file, name, cut in TEST.findall(page.read_text().replace("myloss", "dpo")):  # an example's name
        source = (ROOT / file).read_text() if file else everything
        assert f"def {name}" + ("" if cut else "(") in source, f"{page.name} names {name}"


def test_nobody_is_told_to_install_another_package() -> None:
    """`prefopt` on PyPI is somebody else's; this project's distribution is `prefopt-zoo`."""
    pattern = r"pip install [^`#\n]*\bprefopt(\[|[\"'` ,;)]|$)"
    found = subprocess.run(["git", "grep", "-nIP", pattern], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.stdout == ""
