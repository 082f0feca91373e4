"""Time and memory of preparing preference data: 10k, 100k and 1M synthetic pairs; what spans cost.

    python benchmarks/data_prep.py --save                    # 10k, 100k, 1M pairs
    python benchmarks/data_prep.py --spans 100000 --save     # real dialogues, as plain pairs and with spans
    python benchmarks/data_prep.py --rows 10000 --json

Every figure comes from a process of its own. `first` reads, tokenizes and writes the cache; `second` is the next start
on the same file; both exclude imports. `cpu` is the CPU time of the process and its workers, which is the wall time on
one idle core. `own` is the peak private memory of the process, without the mapped cache files, whose pages the system
can reclaim; `idle` is its private memory after the imports; `worker` is the whole resident memory of the largest worker
process, mapped files included. The texts are random words, with lengths like those of real pairs.

`--spans` takes the dialogues of several turns of hh-rlhf (from `--data`), repeated under numbers of their own up to the
wanted count, and prepares the same texts twice: as plain pairs, whose last turns are the completions, and as pairs that
part at the first answer, whose completions are all turns from there: trained and given spans.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import cost_tables
import hh_rlhf
import numpy as np
from memory import anonymous_mib

RESULTS = Path(__file__).parent / "results" / "data_prep.json"
SPANS = RESULTS.with_name("data_prep_spans.json")
WORDS = 20_000  # different words
SAMPLE_SECONDS = 0.02  # between two looks at the memory


def write_rows(path: Path, rows: int) -> None:
    """Write `rows` pairs as JSON lines, with word lengths and frequencies roughly like those of natural text."""
    draw = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = ["".join(draw.choice(letters, size)) for size in np.clip(draw.poisson(4.5, WORDS), 1, 14)]
    shares = 1 / np.arange(10, WORDS + 10)
    shares /= shares.sum()
    with path.open("w") as stream:
        for start in range(0, rows, 10_000):
            count = min(10_000, rows - start)
            sizes = np.clip(draw.lognormal([3.9, 2.8, 3.0], 0.7, (count, 3)).astype(int), 3, 600)
            picks = iter(draw.choice(WORDS, int(sizes.sum()), p=shares))
            for prompt, chosen, rejected in sizes:
                texts = [" ".join(words[next(picks)] for _ in range(size)) for size in (prompt, chosen, rejected)]
                stream.write(json.dumps(dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))) + "\n")


def write_dialogues(folder: Path, rows: int, data: Path) -> dict[str, Path]:
    """Write the same dialogues as plain pairs and as pairs with spans; returns both files."""
    from prefopt.data import DataConfig, read

    found = read(DataConfig(path=str(data / hh_rlhf.FILE), cache_dir=str(folder / "cache-dialogues"))).records
    dialogues = [(r.prompt, r.completions) for r in found if len(r.prompt) > 2 and isinstance(r.completions[0], str)
                 and isinstance(r.completions[1], str)]  # fmt: skip
    files = {name: folder / f"{name}-{rows}.jsonl" for name in ("plain", "spans")}
    with files["plain"].open("w") as plain, files["spans"].open("w") as spans:
        for i in range(rows):
            prompt, sides = dialogues[i % len(dialogues)]
            assert not isinstance(prompt, str), "dialogues have turns"
            turns = [{**prompt[0], "content": f"Case {i}. {prompt[0]['content']}"}, *prompt[1:]]
            plain.write(json.dumps({"prompt": turns, "chosen": sides[0], "rejected": sides[1]}) + "\n")
            whole = [[*turns[1:], {"role": "assistant", "content": said}] for said in sides]
            spans.write(json.dumps({"prompt": turns[:1], "chosen": whole[0], "rejected": whole[1]}) + "\n")
    return files


def measure_spans(rows: int, folder: Path, data: Path) -> dict[str, Any]:
    """Measure the first start on the same dialogues as plain pairs and with spans."""
    sample = folder / "sample.jsonl"
    write_rows(sample, 2000)
    write_tokenizer(folder / "tokenizer", sample)
    found: dict[str, Any] = {"rows": rows}
    for name, path in write_dialogues(folder, rows, data).items():
        one = started(path, folder)
        found |= {f"{name}_{key}": one[key] for key in ("tokens", "given", "kept", "seconds", "cpu_seconds")}
    found["ratio"] = round(found["spans_cpu_seconds"] / found["plain_cpu_seconds"], 3)
    return found


def started(path: Path, folder: Path) -> dict[str, Any]:
    """What one start on a file takes, in a process of its own."""
    command = [sys.executable, __file__, "--child", str(path), "--folder", str(folder)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def write_tokenizer(folder: Path, sample: Path) -> None:
    """A byte-level BPE tokenizer of 8,192 tokens with a ChatML template, trained on the first rows."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8192, special_tokens=["<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    with sample.open() as stream:
        rows = [json.loads(line) for _, line in zip(range(2000), stream, strict=False)]
    core.train_from_iterator((text for row in rows for text in row.values()), trainer)
    made: Any = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>")  # type: ignore[no-untyped-call]
    made.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    made.save_pretrained(folder)


def child(path: Path, folder: Path) -> dict[str, Any]:
    """Prepare the data once, in this process."""
    import datasets
    from transformers import AutoTokenizer

    from prefopt.data import DataConfig, prepare
    from prefopt.plugin import Data

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    peak = [anonymous_mib()]
    idle = peak[0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLE_SECONDS):
            peak[0] = max(peak[0], anonymous_mib())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start, before = time.perf_counter(), sum(os.times()[:4])
    config = DataConfig(path=str(path), eval_records=1000, cache_dir=str(folder / f"cache-{path.stem}"))
    ready = prepare(config, tokenizer, Data.PAIRS)
    seconds, cpu = time.perf_counter() - start, sum(os.times()[:4]) - before
    done.set()
    watcher.join()
    prompts, (completions, _) = ready.train.prompt_lengths(), ready.train.completion_lengths()
    return {
        "kept": len(ready.train) + len(ready.eval or ()),
        "given": int(ready.train.given().sum()),
        "tokens": float(round((prompts.sum() + completions.sum()) / len(ready.train), 1)),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "idle_mib": round(idle),
        "own_mib": round(peak[0]),
        "worker_mib": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
    }


def measure(rows: int, folder: Path) -> dict[str, Any]:
    """Measure the first and second start on a set of `rows` pairs."""
    path = folder / f"rows-{rows}.jsonl"
    write_rows(path, rows)
    if not (folder / "tokenizer").exists():
        write_tokenizer(folder / "tokenizer", path)
    found = {start: started(path, folder) for start in ("first", "second")}
    cache = sum(f.stat().st_size for f in (folder / f"cache-{path.stem}").rglob("*") if f.is_file())
    shutil.rmtree(folder / f"cache-{path.stem}")
    size = path.stat().st_size
    path.unlink()
    first, second = found["first"], found["second"]
    return {
        "rows": rows,
        "tokens": first["tokens"],
        "file_mib": round(size / 2**20),
        "cache_mib": round(cache / 2**20),
        "first_s": first["seconds"],
        "first_cpu_s": first["cpu_seconds"],
        "second_s": second["seconds"],
        "idle_mib": first["idle_mib"],
        "own_mib": first["own_mib"],
        "second_own_mib": second["own_mib"],
        "worker_mib": first["worker_mib"],
    }


def main() -> None:
    """Measure, print the table, and save the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--save", action="store_true", help=f"write results/{RESULTS.name}")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--spans", type=int, metavar="N", help="measure N dialogues as plain pairs and with spans")
    parser.add_argument("--data", help="the folder with hh-rlhf/ (default: $PREFOPT_SHARED_DATA)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child, args.folder)))
        return
    found: dict[str, Any]
    with tempfile.TemporaryDirectory() as folder:
        if args.spans:
            found = {"spans": measure_spans(args.spans, Path(folder), hh_rlhf.data_folder(args.data))}
        else:
            found = {"rows": [measure(count, Path(folder)) for count in args.rows]}
    result = {
        **found,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[2], 1),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }
    if args.save:
        (SPANS if args.spans else RESULTS).write_text(json.dumps(result, indent=1) + "\n")
    table = cost_tables.data_prep_spans if args.spans else cost_tables.data_prep
    print(json.dumps(result, indent=1) if args.json else table(result))


if __name__ == "__main__":
    main()
