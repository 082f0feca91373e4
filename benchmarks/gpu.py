"""prefopt on one GPU, within eight minutes: is it right, is it fast, and does `plan` know its memory?

    python benchmarks/gpu.py                    # writes benchmarks/results/gpu.json
    python benchmarks/gpu.py --parts a c        # some parts; --minutes 4: start nothing after so many

(a) correctness: trees with flex_attention and the blocked head against a plain float32 forward, log-probs and
    gradients, in float32, TF32 and bfloat16, over four families; and the probabilities of sampled tokens when they are
    scored. A lower precision is judged by the error that a plain forward of the same precision makes.
(b) speed and memory of a DPO step: random models with the sizes of SmolLM2-135M, a 1B and an 8B model (LoRA), two and
    eight completions of a prompt, long prompts or long completions; against padded transformers with SDPA, prefopt's
    own padded rows, and TRL (padding-free and Liger where flash-attn and liger-kernel are installed). The share is
    that of the rate of bfloat16 products of 8192 x 8192 matrices, measured on the same card.
(c) the memory that `prefopt plan` estimates against the peak that a run then reaches.

What is not installed or does not fit is listed with the reason. Without a card nothing is measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu_correctness
import gpu_speed
import numpy as np
import torch
import transformers
from gpu_speed import SIZES, Case, Size

from prefopt.common.files import write_lines
from prefopt.config.compose import compose
from prefopt.planning.plan import plan
from prefopt.runs.run import run
from prefopt.worlds.build import tokenizer

RESULT = Path(__file__).with_name("results") / "gpu.json"
MINUTES = 7.5
PLANNED: dict[str, tuple[str, ...]] = {"full": (), "LoRA": ("peft=lora",)}  # overrides


def cases() -> Iterator[tuple[Case, str]]:
    """What part (b) times, the most telling first: a case and a program."""
    for size in SIZES:
        for lengths in gpu_speed.LENGTHS:
            for completions in (2, 8):
                case = Case.of(size, lengths, completions)
                yield case, "prefopt"
                yield case, "transformers, padded"
                if completions == 8:
                    yield case, "prefopt, padded"
                else:
                    yield case, "TRL"


def planned_memory(name: str, size: Size, overrides: tuple[str, ...], device: torch.device) -> dict[str, Any]:
    """The memory that `plan` estimates for a run on random pairs, and the peak of the run."""
    with tempfile.TemporaryDirectory() as folder:
        model, words = gpu_speed.model_of(Size(**(vars(size) | {"lora": False})), torch.device("cpu")), tokenizer()
        model.save_pretrained(f"{folder}/model")
        words.save_pretrained(f"{folder}/model")
        del model
        rng = np.random.default_rng(0)

        def text() -> str:
            return " ".join(words.convert_ids_to_tokens(rng.integers(4, len(words), rng.integers(64, 256)).tolist()))

        rows = [{"prompt": text(), "chosen": " " + text(), "rejected": " " + text()} for _ in range(80)]
        write_lines(Path(folder, "pairs.jsonl"), rows)
        config = compose([
            "loss=dpo", f"model.path={folder}/model", f"data.path={folder}/pairs.jsonl", "data.template=plain",
            "data.eval_records=8", "batch.records=16", "trainer.max_steps=2", "evaluation.kl_prompts=2",
            "evaluation.texts=0", "evaluation.max_new_tokens=8", f"output_dir={folder}/run", "progress=quiet",
            *(["trainer.bf16=true"] if device.type == "cuda" else []), *overrides,
        ])  # fmt: skip
        estimate = plan(config).plain()["memory_gib"]["total"]
        gpu_speed.reset_peak(device)
        run(config)
        peak = gpu_speed.peak(device)
    return {"setting": name, "estimate": estimate, "measured": peak, "error": estimate / peak - 1}


def installed() -> dict[str, bool]:
    """Which optional programs are there."""
    return {name: importlib.util.find_spec(name) is not None for name in ("trl", "liger_kernel", "flash_attn", "peft")}


def measured(parts: list[str], minutes: float, device: torch.device) -> dict[str, Any]:
    """The results of some parts; what there was no time for is listed under `left_out`."""
    deadline = time.monotonic() + 60 * minutes
    there = installed()
    found: dict[str, Any] = {
        "card": torch.cuda.get_device_name(device), "torch": torch.__version__,
        "transformers": transformers.__version__, "installed": there, "left_out": [],
    }  # fmt: skip

    def time_for(name: str) -> bool:
        if time.monotonic() <= deadline:
            return True
        found["left_out"].append(f"{name}: no time left")
        return False

    if "a" in parts:
        families = [family for family in gpu_correctness.FAMILIES if time_for(f"correctness, {family}")]
        found["correctness"] = [row for family in families for row in gpu_correctness.compared(family, device)]
    if "c" in parts:
        found["memory"] = []
        for name, words in PLANNED.items():
            if words and not there["peft"]:
                found["left_out"].append(f"memory, {name}: peft is not installed")
            elif time_for(f"memory, {name}"):
                found["memory"].append(planned_memory(name, SIZES["SmolLM2-135M"], words, device))
    if "b" in parts:
        found["products_tflop_per_s"] = rate = gpu_speed.product_rate(device)
        found["speed"] = []
        for case, program in cases():
            name = f"{case.size}, {case.lengths}, {case.completions} completions, {program}"
            if program == "TRL" and not there["trl"]:
                found["left_out"].append(f"{name}: TRL is not installed")
            elif time_for(name):
                row = gpu_speed.measured(case, SIZES[case.size], program, device, rate)
                print(json.dumps(row), flush=True)
                found["speed"].append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=["a", "b", "c"], default=["a", "c", "b"])
    parser.add_argument("--minutes", type=float, default=MINUTES, help="start nothing after so many")
    parser.add_argument("--to", default=str(RESULT), help="file of the results (default: %(default)s)")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no GPU is here: nothing was measured (`pytest tests/benchmarks/test_gpu.py` runs the parts "
                         "on CPU, with tiny models)")  # fmt: skip
    found = measured(args.parts, args.minutes, torch.device("cuda"))
    Path(args.to).write_text(json.dumps(found, indent=1) + "\n")
    print(f"wrote {args.to}; now `make results`")


if __name__ == "__main__":
    main()
