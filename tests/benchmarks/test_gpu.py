"""The parts of `benchmarks/gpu.py` on CPU with tiny models: what a card will run, runs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import gpu  # noqa: E402
import gpu_correctness  # noqa: E402
import gpu_speed  # noqa: E402
from gpu_speed import Case, Size  # noqa: E402

CPU = torch.device("cpu")
TINY = Size(hidden=16, inner=24, layers=1, heads=2, kv_heads=1, vocabulary=80, tied=True)


@pytest.mark.parametrize("family", gpu_correctness.FAMILIES)
def test_trees_equal_plain_forwards(family: str) -> None:
    rows = gpu_correctness.compared(family, CPU, width=128, layers=2, vocabulary=64)
    assert [row["precision"] for row in rows] == list(gpu_correctness.PRECISIONS)
    exact = rows[0]
    assert "error" not in exact
    assert exact["ok"]
    assert exact["plain_token"] == 0
    assert exact["tree_token"] < 1e-5
    assert exact["tree_gradient"] < 1e-5
    assert exact["sampler_ratio"] < 1e-4
    assert rows[2]["plain_token"] > 1e-4, "bfloat16 rounds"


@pytest.mark.parametrize("program", ["prefopt", "prefopt, padded", "transformers, padded"])
def test_a_step_is_timed(program: str) -> None:
    case = Case("tiny", "short", 2, prompt=6, completion=4, records=3)
    row = gpu_speed.measured(case, TINY, program, CPU, 1.0, warm_up=1, steps=1)
    assert "error" not in row
    assert row["pairs_per_s"] == pytest.approx(3 / row["step_s"])
    assert row["peak_gib"] > 0


def test_all_programs_compute_one_loss() -> None:
    model = gpu_speed.model_of(TINY, CPU)
    records = gpu_speed.random_records([(6, [4, 4, 4])] * 3, 80)
    gradients = []
    for stepper in (
        gpu_speed.prefopt_step(model, records, "tree"), gpu_speed.prefopt_step(model, records, "padded"),
        gpu_speed.padded_step(model, records),
    ):  # fmt: skip
        model.zero_grad()
        with stepper as step:
            step()
        gradients.append(torch.cat([p.grad.flatten().clone() for p in model.parameters()]))
    for other in gradients[1:]:
        assert torch.allclose(gradients[0], other, atol=1e-6)


def test_useful_work_of_a_case() -> None:
    case = Case("tiny", "short", 2, prompt=6, completion=4, records=3)
    assert case.useful_tokens == 3 * (6 + 2 * 3)
    layer = 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24
    seen = 3 * (18 + 2 * (24 + 8))
    assert case.flops(TINY) == 3 * (2 * layer * 36 + 4 * 16 * seen + 2 * 16 * 80 * 24)
    assert {(c.completions, p) for c, p in gpu.cases()} >= {(2, "TRL"), (8, "prefopt, padded")}


def test_what_is_not_installed_or_has_no_time_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(gpu_speed, "product_rate", lambda device: 1.0)
    monkeypatch.setattr(gpu, "installed", lambda: {"trl": False, "peft": False})
    found = gpu.measured(["a", "b", "c"], -1.0, CPU)
    assert found["card"] == "a card"
    assert found["correctness"] == found["memory"] == found["speed"] == []
    assert any(line.endswith("TRL is not installed") for line in found["left_out"])
    assert any(line.endswith("peft is not installed") for line in found["left_out"])
    assert {line.split(",")[0] for line in found["left_out"] if line.endswith("no time left")} >= {
        "correctness",
        "memory",
    }


def test_without_a_card_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU is here"):
        gpu.main()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of TRL's own arguments
def test_memory_and_trl_on_cpu() -> None:
    found = gpu.planned_memory("full", TINY, (), CPU)
    assert found["estimate"] > 0
    assert found["measured"] > 0
    if importlib.util.find_spec("trl") is None:
        pytest.skip("TRL is not installed")
    case = Case("tiny", "short", 2, prompt=6, completion=4, records=2)
    assert len(gpu_speed.trl_steps(gpu_speed.model_of(TINY, CPU), case, CPU, warm_up=1, steps=1)) == 1
