"""Judges the losses of every installed library by the conformance vectors, for docs/vectors.md.

    python -m benchmarks.referee [--install FOLDER]
    python -m benchmarks.referee --pages | --check        # the tables alone, from what was measured

Writes benchmarks/results/referee.json, which keeps what is known of versions that are not installed here, and the
tables: the rulings, and how far a loss moves when the same batch is split into micro-batches. `--install` first makes
a virtual environment in FOLDER for every version of `LIBRARIES` and judges it there.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import math
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.page_parts import filled, write
from benchmarks.page_parts import results as committed_results
from prefopt.losses.registry import loss_class
from prefopt.testing.kit import example
from prefopt.testing.peers import PEERS, load_peer
from prefopt.testing.referee import Way, cases_of, judge_all
from prefopt.testing.vectors import VERSION, numbers

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "referee.json"
PAGE = ROOT / "docs" / "vectors.md"
REPRODUCTIONS = ROOT / "benchmarks" / "reproductions"
SOURCES = "https://github.com/prefopt/prefopt/blob/main"
PARTS = (2, 4)  # micro-batches
COUNTED = {"dft"}  # TRL's SFTTrainer divides by the tokens of all micro-batches, which the trainer counts for it
SEED = 14  # of the batch that is split: one on which every coupled loss moves


@dataclass(frozen=True)
class Library:
    """One version of a library: what pip installs, and a module whose import shows that its losses can be called."""

    peer: str
    requirements: tuple[str, ...]
    module: str
    with_dependencies: bool = False


# TRL 0.5.0 is the oldest version with a preference loss; 0.11.4 and 0.28.0 end eras of its API; the newest is installed
# with prefopt's extra `peers`. Old versions need the transformers, datasets and peft of their day.
LIBRARIES = (
    Library("trl", ("trl==0.5.0", "transformers==4.36.2", "datasets==2.19.2", "peft==0.5.0"), "trl.trainer.dpo_trainer",
            with_dependencies=True),
    Library("trl", ("trl==0.11.4", "transformers==4.46.3", "datasets==3.6.0"), "trl.trainer.dpo_trainer",
            with_dependencies=True),
    Library("trl", ("trl==0.28.0", "transformers==4.57.1", "datasets==4.0.0"), "trl.trainer.dpo_trainer",
            with_dependencies=True),
    Library("liger", ("liger-kernel==0.8.5",), "liger_kernel.chunked_loss"),
    Library("openrlhf", ("openrlhf==0.11.2",), "prefopt.testing.peers.openrlhf_losses"),
    Library("torchtune", ("torchtune==0.6.1", "torchao==0.9.0", "sentencepiece", "tiktoken", "blobfile", "kagglehub",
                          "hf_transfer"), "torchtune.rlhf.loss"),
    Library("mlx_lm_lora", ("mlx-lm-lora==5.10.2", "mlx==0.32.4", "mlx-cpu==0.32.4", "mlx-lm==0.32.2"),
            "mlx_lm_lora.trainer.dpo_trainer"),
    Library("oxrl", ("oxrl==1.7.2",), "oxrl.algs.dpo"),
    Library("nemo_aligner", ("nemo-aligner==0.7.0",), "nemo_aligner.models.nlp.gpt.megatron_gpt_dpo_model"),
)  # fmt: skip


def judged(library: Library, folder: Path) -> tuple[str, dict[str, Any]]:
    """The version's name and what the referee says of it, or the error that its installation or import ends with."""
    name = library.requirements[0]
    python = _installed(library, folder / name)
    if isinstance(python, str):
        return name, {"error": python}
    done = _run(python, "-W", "ignore", "-c", f"import {library.module}")
    if done.returncode:
        return name, {"error": _last_line(done.stderr)}
    done = _run(python, "-W", "ignore", "-m", "benchmarks.referee", "--measure", library.peer)
    if done.returncode:
        return name, {"error": _last_line(done.stderr)}
    found = json.loads(done.stdout.splitlines()[-1])
    return found["version"], found


def _installed(library: Library, folder: Path) -> Path | str:
    """The interpreter of the environment, or the error of pip; what is installed already is kept."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        site = next(folder.glob("lib/*/site-packages"))
        here = {sysconfig.get_path("purelib"), *(path for path in sys.path if path.endswith("site-packages"))}
        (site / "this_environment.pth").write_text("\n".join(sorted(here)) + "\n")
    alone = () if library.with_dependencies else ("--no-deps",)
    done = _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *alone, *library.requirements)
    return _last_line(done.stderr) if done.returncode else python


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True, check=False)


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")


def committed(loss: str) -> dict[str, Any]:
    """The vectors of a loss in docs/vectors."""
    return json.loads((ROOT / "docs" / "vectors" / f"{loss}.json").read_text())  # type: ignore[no-any-return]


def measure(name: str) -> dict[str, Any]:
    """Judge the installed version of a library, and run the reproductions of what fails in it."""
    peer = load_peer(name)
    rulings = {n: r for n, r in judge_all(peer.PEER, committed).items() if r.verdict != "absent"}
    moved = {n: split(peer.PEER[n][0], n) for n in rulings if n not in COUNTED}
    return {
        "version": peer.version(),
        "vectors": VERSION,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "losses": {n: dataclasses.asdict(r) for n, r in rulings.items()},
        "split": {n: change for n, change in moved.items() if change},
        "reproduced": {n: reproduced(name, n) for n, r in rulings.items() if r.verdict == "fails"},
    }


def reproduction(peer: str, loss: str) -> Path:
    """The script of at most 20 lines that shows a failure with the library alone, without prefopt."""
    return REPRODUCTIONS / f"{peer}_{loss}.py"


def reproduced(peer: str, loss: str) -> str:
    """What the reproduction prints.

    Raises:
        CalledProcessError: the library is not wrong in the way that it claims.
    """
    command = [sys.executable, "-W", "ignore", str(reproduction(peer, loss))]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def split(way: Way, name: str) -> dict[str, float]:
    """How far the loss or the gradients of a batch move, each relative to its largest, when it comes in micro-batches.

    Parts that the peer cannot take, such as labels of one kind alone, are left out.
    """
    case = cases_of(committed(name))[0]
    if case.targets:
        return {}  # of a whole rollout, whatever the split
    drawn = numbers(example(loss_class(name)), seed=SEED)
    batch = {key: value.requires_grad_(key in case.gradients) for key, value in drawn.items()}
    found: dict[str, float] = {}

    def step(parts: int) -> tuple[Tensor, Tensor]:
        """The mean loss of the parts, as accumulation gives it, and all gradients."""
        share, total = len(case.loss) // parts, torch.zeros((), dtype=torch.float64)
        for start in range(0, len(case.loss), share):
            inputs = {key: value[start : start + share] for key, value in batch.items()}
            total = total + way.call(dataclasses.replace(case, inputs=inputs)).mean() / parts
        leaves = [batch[key] for key in case.gradients]
        slopes = zip(torch.autograd.grad(total, leaves), leaves, strict=True)
        # Beside sums, 0 is past the end of a completion.
        inside = [slope * (leaf != 0) if leaf.ndim > 1 else slope for slope, leaf in slopes]
        return total.detach(), torch.cat([slope.flatten() for slope in inside])

    whole = step(1)
    for parts in PARTS:
        with contextlib.suppress(Exception):  # anything may come out of another library
            pairs = zip(step(parts), whole, strict=True)
            change = max(float((ours - all_).abs().max() / all_.abs().max()) for ours, all_ in pairs)
            if math.isfinite(change):
                found[str(parts)] = change
    return found


def rulings_table(results: dict[str, Any]) -> str:
    """The matrix of libraries and losses as Markdown."""

    def cell(ruling: dict[str, Any]) -> str:
        reason = None if ruling["verdict"] == "pass" else ruling["convention"]
        verdict = f"**{ruling['verdict']}**" if ruling["verdict"] == "fails" else ruling["verdict"]
        return ": ".join(word for word in (verdict, reason) if word)

    return _matrix(results, "losses", cell)


def failures_table(results: dict[str, Any]) -> str:
    """What fails, with the script that shows it and what it prints."""
    rows = ["| library | loss | what it computes | shown by | it prints |", "|---|---|---|---|---|"]
    for name, peer in results.items():
        for loss, printed in peer["reproduced"].items():
            scripts = REPRODUCTIONS.glob(f"*_{loss}.py")
            script = next(path for path in scripts if _spelt(path.stem) in _spelt(name + loss))
            link = f"[{script.name}]({SOURCES}/{script.relative_to(ROOT)})"
            rows.append(f"| {name} | `{loss}` | {peer['losses'][loss]['convention']} | {link} | {printed} |")
    return "\n".join(rows) + "\n"


def _spelt(name: str) -> str:
    """A name without case, versions and marks: `mlx-lm-lora 5.10.2` and `mlx_lm_lora` are the same."""
    return "".join(letter for letter in name.lower() if letter.isalpha())


def missing_table(results: dict[str, Any]) -> str:
    """The versions that could not be judged here, with the error."""
    rows = ["| library | error |", "|---|---|"]
    return "\n".join([*rows, *(f"| {name} | `{entry['error']}` |" for name, entry in results.items())]) + "\n"


def split_table(results: dict[str, Any]) -> str:
    """How far each loss moves in 2 and in 4 micro-batches, where it moves at all."""
    moving = {
        name: peer | {"split": {n: moved for n, moved in peer["split"].items() if max(moved.values()) > 1e-6}}
        for name, peer in results.items()
    }
    return _matrix(
        moving, "split", lambda moved: ", ".join(f"{100 * moved[p]:.1f} %" for p in map(str, PARTS) if p in moved)
    )


def _matrix(results: dict[str, Any], key: str, cell: Callable[[Any], str]) -> str:
    peers = list(results.values())
    columns = " | ".join(f"{peer['version']}<br>{peer['date']}" for peer in peers)
    rows = [f"| loss | {columns} |", "|---" * (len(peers) + 1) + "|"]
    for name in sorted({name for peer in peers for name in peer[key]}):
        rows.append(f"| `{name}` | {' | '.join(cell(p[key][name]) if name in p[key] else '–' for p in peers)} |")
    return "\n".join(rows) + "\n"


def page(results: dict[str, Any]) -> str:
    """The documentation page with the tables put in."""
    judged_ones = {name: entry for name, entry in results.items() if "error" not in entry}
    tables = {
        "referee": rulings_table(judged_ones),
        "failures": failures_table(judged_ones),
        "missing": missing_table({name: entry for name, entry in results.items() if "error" in entry}),
        "split": split_table(judged_ones),
    }
    return filled(PAGE, tables)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.referee", description=__doc__)
    parser.add_argument("--pages", action="store_true", help="only write the tables of the results")
    parser.add_argument("--check", action="store_true", help="only check that the tables are those of the results")
    parser.add_argument("--measure", metavar="NAME", help="only print what is found of one installed library, as JSON")
    parser.add_argument(
        "--install", type=Path, metavar="FOLDER", help="install all known versions there, and judge them"
    )
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return
    if args.check or args.pages:
        found = committed_results(RESULTS, "python -m benchmarks.referee --install FOLDER")
        write(PAGE, page(found), check=args.check, command="python -m benchmarks.referee --pages")
        return
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in (name for name, (_, package) in PEERS.items() if find_spec(package) is not None):
        entry = measure(name)
        results = _kept(results | {entry["version"]: entry})
    for library in LIBRARIES if args.install else ():
        results = _kept(results | dict([judged(library, args.install)]))
    PAGE.write_text(page(results))


def _kept(results: dict[str, Any]) -> dict[str, Any]:
    """Write the results in order, as they come: a run that is ended keeps what was judged."""
    found = dict(sorted(results.items(), key=lambda item: _order(item[0])))
    RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return found


def _order(version: str) -> tuple[str, tuple[int, ...]]:
    """By library, then by version, the newest first."""
    name, _, number = version.partition(" ")
    return name.lower(), tuple(-int(part) for part in number.split(".") if part.isdigit())


if __name__ == "__main__":
    main()
