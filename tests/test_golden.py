"""A few golden runs are as they were recorded; `python -m tests.golden check` runs all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import golden
from tests.golden_cases import CASES, write_files

RECORDED = json.loads(golden.FILE.read_text(encoding="utf-8"))
NAMES = ("dpo/tree/full/several", "kto/padded/lora/several", "aot/tree/full/several", "tdpo2/tree/full/one",
         "held_out/dpo")  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    write_files(folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_as_it_was_recorded(name: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit on a processor and versions such as those of the record, else to 1e-5."""
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    new, old = golden.run_here(CASES[name], files, tmp_path), RECORDED["cases"][name]
    if golden.environment() == RECORDED["environment"]:
        assert new == old
    else:
        assert without_weights(new) == pytest.approx(without_weights(old), rel=1e-5, abs=1e-6)


def test_every_case_is_recorded() -> None:
    assert list(RECORDED["cases"]) == list(CASES)


def without_weights(result: dict[str, Any]) -> dict[str, float]:
    return {f"{name} {i}": value for name in result.keys() - {"weights"} for i, value in enumerate(result[name])}
