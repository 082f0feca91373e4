"""Everything against one process: `python -m tests.train.matrix FOLDER [LAUNCHER-PROCESSES...]`, by default all.

Both launchers, 1, 2 and 4 processes, whole copies (DDP) and shards (FSDP2), all weights and LoRA, trees and padded
rows, a plain loss and two coupled ones: 20 steps each (`accelerate launch` shards on two processes or more alone).
Prints the largest relative difference of a step's loss, and the largest difference of a weight after the last step, by
launcher, processes and shards.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.train import processes as together
from tests.train import tiny
from tests.train.test_processes import ROOT, STEPS, environment

PLAIN = [
    "+".join(filter(None, parts)) for parts in itertools.product(("dpo", "kto", "aot"), ("", "lora"), ("", "padded"))
]
LAUNCHERS = {
    "torchrun": ["torch.distributed.run"],
    "accelerate": ["accelerate.commands.launch", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"],
}  # fmt: skip


def launched(launcher: str, processes: int, folder: Path, runs: list[str]) -> None:
    count = f"--nproc-per-node={processes}" if launcher == "torchrun" else f"--num_processes={processes}"
    where = ["--standalone", "--local-addr=127.0.0.1"]  # the launchers choose the port
    if launcher == "accelerate":
        several = ["--multi_gpu"] if processes > 1 else []
        where = ["--main_process_ip=127.0.0.1", "--main_process_port=0", *several]
    command = [sys.executable, "-m", *LAUNCHERS[launcher], count, *where, "-m", "tests.train.processes",
               str(folder), *runs, f"--steps={STEPS}"]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-6000:])


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    one = {run: together.train(run, folder / "one", steps=STEPS) for run in PLAIN}
    total = 0
    for group in sys.argv[2:] or [f"{launcher}-{n}" for launcher in LAUNCHERS for n in (1, 2, 4)]:
        launcher, processes = group.split("-")[0], int(group.split("-")[1])
        home = folder / group
        ways = ("",) if (launcher, processes) == ("accelerate", 1) else ("", "+fsdp")
        launched(launcher, processes, home, [run + way for way in ways for run in PLAIN])
        for shards in ways:
            losses = weights = 0.0
            for run in PLAIN:
                report, kept = one[run]
                other = json.loads((home / f"{run}{shards}.json").read_text())
                assert other["processes"] == processes
                pairs = zip(other["losses"], report["losses"], strict=True)
                losses = max([losses, *(abs(a - b) / abs(b) for a, b in pairs)])
                left = load_file(home / f"{run}{shards}.safetensors")
                weights = max(weights, tiny.apart(left, together.whole(kept)))
            total += len(PLAIN)
            print(f"{launcher:10}  {processes} processes  {'FSDP2' if shards else 'DDP  '}  {len(PLAIN)} runs  "
                  f"losses {losses:.1e}  weights {weights:.1e}", flush=True)  # fmt: skip
            assert losses < 1e-6, "losses"
            assert weights < 1e-6, "weights"
    print(f"{total} of {total} runs of {STEPS} steps as one process makes them")


if __name__ == "__main__":
    main()
