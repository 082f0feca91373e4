"""The changes that `benchmarks/step_variants.py` tries leave the gradient as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import gpu_speed
import step_variants
from growth import random_records

from prefopt.engine import head
from prefopt.engine.scoring import Branch
from prefopt.errors import PrefoptError

TINY = gpu_speed.Size(hidden=16, inner=24, layers=2, heads=2, kv_heads=1, vocabulary=200, tied=True)


def prepared(model: str, data: str | None, row_tokens: int = 1024) -> tuple[Any, list[list[Branch]]]:
    records = random_records([(6, [4, 5])] * 4, TINY.vocabulary)
    rows = [[Branch(r.prompt, text) for text in r.completions] for r in records]
    return gpu_speed.model_of(TINY, torch.device("cpu")), rows if row_tokens == 512 else [
        [one for row in rows for one in row]
    ]


@pytest.fixture(scope="module")
def as_it_is() -> float:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_variants, "prepared", prepared)
        return float(step_variants.run(step_variants.AS_IS, "", None, 1)["gradient_norm"])


@pytest.mark.parametrize("name", [n for n in step_variants.VARIANTS if n not in (step_variants.AS_IS, "compiled")])
def test_the_gradient_stays(name: str, as_it_is: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_variants, "prepared", prepared)
    for constant in ("KEPT", "BLOCK"):
        monkeypatch.setattr(head, constant, getattr(head, constant))
    row = step_variants.run(name, "", None, 1)
    assert row["gradient_norm"] == pytest.approx(as_it_is, rel=1e-5)
    assert row["steps_s"][0] > 0
    joined = step_variants.together([row, row | {"peak_gib": row["peak_gib"] + 2}], as_it_is)
    assert joined["same_gradient"]
    assert joined["peak_gib"] == pytest.approx(row["peak_gib"] + 1)
    assert not step_variants.together([row], 1.01 * as_it_is)["same_gradient"]


def test_a_change_that_fails_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback\nValueError: no such block\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: failed)
    assert step_variants.in_a_process("compiled", []) == {"name": "compiled", "error": "ValueError: no such block"}
    monkeypatch.setattr(sys, "argv", ["step_variants.py", "--only", "compiled", "--rounds", "1"])
    with pytest.raises(PrefoptError, match=r"the step as it is failed.*no such block"):
        step_variants.main()
