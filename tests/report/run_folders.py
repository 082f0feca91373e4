"""A made-up folder of a finished run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from prefopt.evaluate.held_out import HeldOut, write_rows
from prefopt.runs.run_folder import RunFolder
from tests.report.html import EVIL

GOOD = 0.8


def run_folder(
    path: Path, *, margin: float = 1.0, spread: float = 0.4, loss: str = "dpo", rows: int = 40, **summary: Any
) -> RunFolder:
    """A finished run whose held-out margins grew by `margin`, give or take `spread`, on `rows` pairs."""
    path.mkdir()
    noise = np.where(np.arange(rows) % 2 == 0, spread, -spread)
    chosen = np.linspace(-30, -20, rows)
    before = HeldOut(
        ids=[f"r{i}" for i in range(rows)], prompts=[str(i) for i in range(rows)],
        sums={"chosen": chosen, "rejected": chosen + 0.5 * np.where(np.arange(rows) % 3 == 0, 1, -1)},
        tokens={"chosen": np.full(rows, 10.0), "rejected": np.full(rows, 12.0)},
    )  # fmt: skip
    after = HeldOut(
        ids=before.ids, prompts=before.prompts, tokens=before.tokens,
        sums={"chosen": chosen - 0.2, "rejected": before.sums["rejected"] - 0.2 - margin - noise},
    )  # fmt: skip
    write_rows(path / "heldout.jsonl", before, after)
    estimate = {"value": 20.0, "se": 1.0, "count": 32}
    texts = {"kl": {"value": 0.8, "se": 0.1, "count": 32}, "length": estimate, "length_before": estimate,
             "longer": {"value": 0.5, "se": 0.6, "count": 32}, "ended": {"value": 1.0, "se": 0.0, "count": 32},
             "ended_before": {"value": 0.9, "se": 0.05, "count": 32}}  # fmt: skip
    after_figures = {"rewards/margins": 0.1 * margin, "rewards/accuracies": GOOD, "rewards/ties": 0.0, "kl": 0.8,
                     "kl_sem": 0.1, "records": rows, "lengths/chosen": 10.0, "lengths/rejected": 12.0}  # fmt: skip
    write(path / "summary.json", {
        "method": loss, "before": {}, "after": after_figures, "texts": texts, "steps": 100, "counts": {},
        "seconds": {"train": 61.0, "total": 75.5}, "reference": {"found": 3, "computed": 5}, "memory_gib": 1.25,
        "layout": {"layout": "tree"}, **summary,
    })  # fmt: skip
    write(path / "manifest.json", {"versions": {"torch": "2.0", "peft": None}, "platform": "Linux", "started": "2026",
                                   "data": {"schema": "prompt_pair",
                                            "counts": {"rows": 1200, "train": 1000, "eval": rows}}})  # fmt: skip
    write(path / "config.yaml", {  # JSON is YAML
        "loss": {"name": loss, **({"beta": 0.2} if loss == "dpo" else {})},
        "model": {"path": f"m {EVIL}", "dtype": "float32"},
        "data": {"path": "pairs.jsonl", "eval_records": rows, "max_length": 512}, "trainer": {"learning_rate": 1e-5},
        "seed": 7, "output_dir": str(path), "resume": "auto",
    })  # fmt: skip
    lines(path / "metrics.jsonl", [
        {"step": s, "loss": 0.7 - s / 1000, "learning_rate": 1e-5, "grad_norm": 1.0, "rewards/accuracies": GOOD,
         "rewards/margins": s / 100, "ratios/chosen": -s / 100, "ratios/rejected": -s / 50, "tokens_per_second": 900.0}
        for s in range(1, 101)
    ])  # fmt: skip
    lines(path / "samples.jsonl", [
        {"prompt": f"Say {EVIL}", "before": "A red fox.", "after": f"A blue fox {EVIL}."},
        {"prompt": "Same?", "before": "Yes.", "after": "Yes."},
    ])  # fmt: skip
    lines(path / "rejections.jsonl", [
        {"source": "f:1", "reason": "empty_completion", "detail": f"nothing {EVIL}", "id": ""},
        {"source": "f:2", "reason": "empty_completion", "detail": "nothing", "id": ""},
        {"source": "f:3", "reason": "too_long", "detail": "more than 512 tokens", "id": ""},
    ])  # fmt: skip
    return RunFolder(path)


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
