"""The conformance vectors: what is committed is what the losses give, and the runner needs numpy only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy
import pytest

from prefopt.cli import main
from prefopt.losses import MENU
from prefopt.testing.vectors import dumps, vectors

FOLDER = Path(__file__).parents[2] / "docs" / "vectors"


def committed(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())  # type: ignore[no-any-return]


def assert_same(ours: Any, theirs: Any, place: str) -> None:
    """Equal but for rounding, which may depend on the machine."""
    if isinstance(ours, dict):
        assert list(ours) == list(theirs), place
        for key in ours:
            assert_same(ours[key], theirs[key], f"{place}.{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), place
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(one, other, f"{place}[{index}]")
    elif isinstance(ours, float):
        assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-12), place
    else:
        assert ours == theirs, place


@pytest.mark.parametrize("name", MENU)
def test_the_committed_vectors_are_what_the_loss_gives(name: str) -> None:
    """A number that changes on purpose raises `VERSION`: then run `prefopt vectors --out docs/vectors`."""
    assert_same(vectors(name), committed(name), name)


def test_every_file_is_of_a_loss() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == {*MENU, "schema"}


def test_the_files_obey_the_schema() -> None:
    schema = committed("schema")
    for name in MENU:
        jsonschema.validate(committed(name), schema)


def test_each_hyperparameter_is_changed_in_some_case() -> None:
    cases = [case["name"] for case in committed("kto")["cases"]]
    assert {name.split(", ")[1] for name in cases if "changed" in name} == {
        "beta changed", "desirable_weight changed", "undesirable_weight changed"
    }  # fmt: skip


def test_a_batch_has_log_ratios_of_both_signs() -> None:
    """A branch that is taken below the reference only, such as the penalty of DPOP, is seen."""
    inputs = committed("dpop")["inputs"]
    for side in ("chosen", "rejected"):
        ratios = [now - before for now, before in zip(inputs[side], inputs[f"ref_{side}"], strict=True)]
        assert min(ratios) < 0 < max(ratios)


def test_losses_on_own_samples_have_their_targets() -> None:
    for name in ("rloo", "grpo"):
        advantages = committed(name)["expected"]["targets"]["advantage"]
        assert "old_completions" in committed(name)["inputs"] or "old_completions_token" in committed(name)["inputs"]
        assert [abs(sum(row)) for row in advantages] == pytest.approx([0.0] * 4, abs=1e-12)


def test_the_verb_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vectors", "dpo", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "dpo.json").read_text() == dumps(vectors("dpo"))
    found = json.loads((tmp_path / "dpo.json").read_text())
    assert {"inputs", "hyperparameters", "expected", "dtype", "version"} <= set(found)
    assert set(found["expected"]) == {"loss", "gradients", "at_reference"}
    capsys.readouterr()
    assert main(["vectors", "dqo", "--out", str(tmp_path)]) == 2
    assert "unknown loss" in capsys.readouterr().err


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The runner in an isolated interpreter that finds the standard library, numpy and what lies in `cwd` alone."""
    (cwd / "site").mkdir()
    for part in Path(numpy.__file__).parents[1].glob("numpy*"):
        if part.name in ("numpy", "numpy.libs"):
            (cwd / "site" / part.name).symlink_to(part)
    block = f"""
import importlib.util, runpy, sys
sys.path += [{str(cwd / "site")!r}, {str(cwd)!r}]
assert not any(importlib.util.find_spec(name) for name in ("prefopt", "torch"))
sys.argv = {[str(FOLDER / "run_vectors.py"), *arguments]!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    return subprocess.run([sys.executable, "-I", "-S", "-c", block], capture_output=True, text=True, cwd=cwd)


def test_the_runner_passes_without_prefopt(tmp_path: Path) -> None:
    assert len((FOLDER / "run_vectors.py").read_text().splitlines()) < 150
    result = run(str(FOLDER), cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("pass") == 4


def test_the_runner_catches_a_wrong_library(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(
        "import numpy as np\n"
        "def dpo(inputs, given):  # the beta is ignored\n"
        "    d = inputs['chosen'] - inputs['ref_chosen'] - inputs['rejected'] + inputs['ref_rejected']\n"
        "    return np.logaddexp(0.0, -0.1 * d)\n"
        "LOSSES = {'dpo': dpo}\n"
    )
    result = run(str(FOLDER), "wrong", cwd=tmp_path)
    assert result.returncode == 1
    assert "beta changed: values off" in result.stdout
    assert "ordinary: " not in result.stdout
