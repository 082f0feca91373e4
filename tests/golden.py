"""Golden runs: `record` writes the numbers of many short runs, `check` compares with them bit for bit.

    python -m tests.golden record|check [--only PATTERN] [--file FILE]

A change that should change no number leaves `check` without a difference. `golden.json` holds, for each case of
`golden_cases.py`, the figures of every step and the SHA-256 of the trained weights. Runs go through `prefopt train`
alone, so the recorder does not depend on how the package is organised. Numbers are those of the recorded processor and
versions; on others the last bits may differ, and `check` says so.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import argparse
import contextlib
import gc
import hashlib
import io
import json
import math
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open

from prefopt.cli import main as prefopt
from tests.golden_cases import CASES, Case, write_files

FILE = Path(__file__).with_name("golden.json")
FIGURES = ("loss", "grad_norm", "learning_rate", "rewards/margins", "eval_loss", "eval_rewards/margins", "eval_kl")
DEPENDS_ON = ("torch", "transformers", "vendor", "capability")  # the same bits, where these are the same
Result = dict[str, Any]


# ---- one run


def arguments(case: Case, files: Path, out: Path) -> list[str]:
    """The command line of a case, whose every file is in `out`."""
    options = [option.replace("OTHER_MODEL", str(files / "other_model")) for option in case.options]
    stages = [f"stages_folder={out / 'stages'}"] if any(o.startswith("stages.") for o in options) else []
    paths = [f"model.path={files / 'model'}", f"data.path={files / case.data}.jsonl", f"output_dir={out / 'run'}"]
    return ["train", *paths, *stages, *options]


def commands(case: Case, files: Path, out: Path) -> list[list[str]]:
    """The command lines of a case, one after the other: two where the second resumes the first elsewhere."""
    argv = arguments(case, files, out)
    if not case.resume_at:
        return [argv]
    saved = [*argv, "trainer.save_strategy=steps", f"trainer.save_steps={case.resume_at}"]
    first = [option.replace(str(out / "run"), str(out / "first")) for option in saved]
    return [first, [*saved, f"resume={out / 'first' / f'checkpoint-{case.resume_at}'}"]]


def result(run: Path) -> Result:
    """What a run left: figures of its steps, in their order, and the digest of its weights."""
    logs = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    figures = {name: [log[name] for log in logs if name in log] for name in FIGURES}
    return {name: values for name, values in figures.items() if values} | {"weights": digest(run / "final")}


def digest(folder: Path) -> str:
    """SHA-256 of the tensors in a folder's safetensors files, by name, type, shape and bytes."""
    tensors: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    assert tensors, f"{folder} has no weights"
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        sha.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def run_here(case: Case, files: Path, out: Path) -> Result:
    """A case of one process, in this one."""
    os.environ["PREFOPT_CACHE"] = str(out / "cache")  # nothing is found that another run has computed
    for argv in commands(case, files, out):
        assert prefopt(argv) == 0, argv
    return result(out / "run")


def run_case(case: Case, files: Path, out: Path) -> Result:
    """A case, in processes of its own: no run sees what another left in memory."""
    os.environ["PREFOPT_CACHE"] = str(out / "cache")
    for argv in commands(case, files, out):
        (launched if case.launcher else forked)(argv, case.processes, out)
    return result(out / "run")


def launched(argv: list[str], processes: int, out: Path) -> None:
    """The command line under torchrun, as docs/distributed.md has it."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    script = str(Path(sys.executable).with_name("prefopt"))
    done = subprocess.run([*launcher, "--no-python", script, *argv], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])


def forked(argv: list[str], processes: int, out: Path) -> None:
    """The command line in children that find each other by the variables that torchrun would set."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with (out / f"{rank}.log").open("w") as log:
                    os.dup2(log.fileno(), 1)
                    os.dup2(log.fileno(), 2)
                if processes > 1:
                    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes,
                             "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
                    os.environ.update({name: str(value) for name, value in names.items()})
                code = prefopt(argv)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise RuntimeError("\n".join((out / f"{rank}.log").read_text()[-3000:] for rank in range(processes)))


# ---- many


def environment() -> dict[str, str]:
    """What the last bits of a number depend on."""
    vendor = platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"vendor_id\s*:\s*(\S+)", Path("/proc/cpuinfo").read_text())
        vendor = found[1] if found else vendor
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "vendor": vendor,
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def difference(old: Result, new: Result) -> float:
    """The largest difference of two figures, as a share of the figure's largest value in the run; infinite where one
    run has others than the other."""
    if [(name, len(old[name])) for name in old] != [(name, len(new[name])) for name in new]:
        return math.inf
    largest = 0.0
    for name in old.keys() - {"weights"}:
        if old[name] == new[name]:
            continue
        if any(isinstance(value, str) for value in (*old[name], *new[name])):  # one that is not finite
            return math.inf
        apart = max(abs(a - b) for a, b in zip(old[name], new[name], strict=True))
        largest = max(largest, apart / max(map(abs, (*old[name], *new[name]))))
    return largest


def compared(old: Result | None, new: Result) -> str:
    """What there is to say about a case: `identical`, or what differs."""
    if old is None:
        return "was not recorded"
    if "error" in new:
        return f"FAILED: {new['error']}"
    if old == new:
        return "identical"
    differ = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return f"DIFFERS in {', '.join(differ)}; largest difference of a figure {difference(old, new):.1e}"


def results(names: list[str]) -> Iterator[tuple[str, Result]]:
    """Run the cases of these names."""
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        prefopt(["train", "--help"])  # imports nearly all that a run does
    import datasets  # noqa: F401 - once here, or in every child
    import matplotlib.pyplot  # noqa: F401
    import peft  # noqa: F401

    gc.collect()
    gc.freeze()
    with tempfile.TemporaryDirectory() as temporary:
        files = Path(temporary) / "files"
        write_files(files)
        for name in names:
            out = Path(temporary) / "out"
            out.mkdir()
            try:
                yield name, run_case(CASES[name], files, out)
            except RuntimeError as error:
                yield name, {"error": str(error)}
            shutil.rmtree(out)


def write(file: Path, recorded: dict[str, Result]) -> None:
    """One line a case, so that a diff shows which changed."""
    lines = [f"{json.dumps(name)}: {json.dumps(found)}" for name, found in recorded.items()]
    cases = ",\n".join(lines)
    file.write_text(f'{{"environment": {json.dumps(environment())},\n"cases": {{\n{cases}\n}}}}\n', encoding="utf-8")


def main() -> int:
    """Record or check."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden")
    parser.add_argument("verb", choices=("record", "check"))
    parser.add_argument("--only", default="", help="a regular expression that finds the names of the cases")
    parser.add_argument("--file", type=Path, default=FILE)
    given = parser.parse_args()
    names = [name for name in CASES if re.search(given.only, name)]
    held = json.loads(given.file.read_text(encoding="utf-8")) if given.file.exists() else {"cases": {}}
    if given.verb == "record":
        if given.only and held.get("environment", environment()) != environment():
            parser.error(f"{given.file} was recorded elsewhere: record all cases, so that they stay comparable")
        found = {}
        for name, new in results(names):
            if "error" in new:
                print(f"{name}: {compared({}, new)}; nothing was recorded")
                return 1
            found[name] = new
            print(f"{name}: {len(new.get('loss', ()))} steps", flush=True)
        merged = held["cases"] | found if given.only else found
        write(given.file, {name: merged[name] for name in CASES if name in merged})
        return 0
    ours = environment()
    changed = [f"{name} {held['environment'][name]}, here {ours[name]}" for name in DEPENDS_ON
               if held["environment"][name] != ours[name]]  # fmt: skip
    wrong = 0
    for name, new in results(names):
        verdict = compared(held["cases"].get(name), new)
        wrong += verdict != "identical"
        print(f"{name}: {verdict}", flush=True)
    print(f"{len(names) - wrong} of {len(names)} cases identical")
    if changed:
        print(f"recorded elsewhere ({'; '.join(changed)}): the last bits may differ for that reason alone")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
