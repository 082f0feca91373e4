"""Runs the commands of docs/walkthrough.md and writes their output under them.

    python benchmarks/walkthrough.py FOLDER     # runs them in FOLDER, which has the data, and writes the page
    python benchmarks/walkthrough.py            # writes the page again from benchmarks/results/walkthrough.json

A command whose output is already in FOLDER/outputs is not repeated, so that a stopped walkthrough resumes.

The texts before and after are compared by words that are typical of a side of the pairs: those that occur there at
least ten times as often as on the other.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import processor
from markdown_tables import quoted

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs" / "walkthrough.md", ROOT / "benchmarks" / "results" / "walkthrough.json"
DATA = "instruction-data-with-preference.json"
WIDTH = 110  # columns of the terminal
MANY, OFTEN = 5, 10  # a word counts from so many occurrences, and if it is so many times as frequent on one side
# The lines of an output that the page shows; others in between become one line with an ellipsis.
SHOWN = {
    "data": r"rows kept|flow:|identical_sides|^. (size|word_rule|longer_chosen)\b",
    "train": r"data:|flow:| (1|8|16|24|32)/32|base  |Chosen is|Margin|Log-prob|Own texts|^[!✓✗]|steps,|model:|report:",
    "sample": r".",
    "export": r".",
}
TIMED = ("train",)  # the others mostly load the model
COMMAND = re.compile(r"^```text\n(prefopt .*?)^```\n", re.DOTALL | re.MULTILINE)
OUTPUT = re.compile(r"(<!-- output of (\w+): written by benchmarks/walkthrough.py -->\n).*?(<!-- end -->)", re.DOTALL)


def commands(page: str) -> dict[str, list[str]]:
    """The words of each command of the page, by its verb."""
    lines = (line for block in COMMAND.findall(page) for line in block.replace("\\\n", " ").splitlines())
    return {words[1]: words for words in map(shlex.split, lines)}


def run(words: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run a command, or return what an earlier call kept of it."""
    kept = folder / "outputs" / f"{words[1]}.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    start, spent = time.monotonic(), processor_seconds()
    env = {**os.environ, "COLUMNS": str(WIDTH)}
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        raise SystemExit(f"{shlex.join(words)}: exit code {done.returncode}\n{done.stderr}")
    found = {"command": shlex.join(words), "seconds": round(time.monotonic() - start),
             "processor_seconds": round(processor_seconds() - spent), "processor": processor(),
             "output": done.stdout}  # fmt: skip
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps(found))
    return found


def processor_seconds() -> float:
    """Of all processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def excerpt(output: str, pattern: str) -> str:
    """The lines of an output that match, with an ellipsis for those left out between them."""
    shown: list[str] = []
    for line in output.splitlines():
        if re.search(pattern, line):
            shown.append(line.rstrip())
        elif shown and shown[-1] != "…":
            shown.append("…")
    return "\n".join(shown[:-1] if shown and shown[-1] == "…" else shown)


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower()))


def criterion(rows: Sequence[dict[str, str]]) -> dict[str, set[str]]:
    """The words typical of the `chosen` and of the `rejected` side of the pairs, where it differs from the other."""
    chosen: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    for row in rows:
        good, bad = words_of(row["chosen"]), words_of(row["rejected"])
        chosen.update(good - bad)
        rejected.update(bad - good)

    def marks(side: Counter[str], other: Counter[str]) -> set[str]:
        return {word for word, count in side.items() if count >= MANY and count >= OFTEN * max(1, other[word])}

    return {"chosen": marks(chosen, rejected), "rejected": marks(rejected, chosen)}


def judged(samples: Sequence[dict[str, str]], marks: dict[str, set[str]]) -> dict[str, Any]:
    """How many texts before and after have words typical of each side, these words, and the texts."""
    counts = {
        f"{kind}_{when}": sum(bool(words_of(sample[when]) & marks[kind]) for sample in samples)
        for kind in marks
        for when in ("before", "after")
    }
    texts = [
        {"prompt": re.findall(r"user\n(.*?)<\|im_end\|>", sample["prompt"], re.DOTALL)[-1],
         "before": sample["before"], "after": sample["after"]}
        for sample in samples
    ]  # fmt: skip
    used = set().union(*(words_of(sample[when]) for sample in samples for when in ("before", "after")))
    found = {kind: sorted(words & used) for kind, words in marks.items()}
    known = {kind: len(words) for kind, words in marks.items()}
    return {"texts": len(samples), **counts, "samples": texts, "words": found, "known": known}


def filled(page: str, results: dict[str, Any]) -> str:
    """The page with the outputs of its commands, and the texts of the run, in their places."""

    def fill(found: re.Match[str]) -> str:
        name = found[2]
        if name == "texts":
            return f"{found[1]}\n{table(results['judged'])}\n{found[3]}"
        result = results["outputs"][name]
        took = ""
        if name in TIMED:
            took = f"\n{spelt(result['processor_seconds'])} of processor time on {result['processor']}.\n"
        return f"{found[1]}\n```text\n{excerpt(result['output'], SHOWN[name])}\n```\n{took}\n{found[3]}"

    return OUTPUT.sub(fill, page)


def spelt(seconds: int) -> str:
    """A duration in minutes and seconds."""
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds >= 60 else f"{seconds} s"


def table(found: dict[str, Any]) -> str:
    """The texts before and after, and how many of them have words typical of a side, and which."""
    lines = ["| prompt | base | tuned |", "|---|---|---|"]
    lines += [f"| {quoted(s['prompt'])} | {quoted(s['before'])} | {quoted(s['after'])} |" for s in found["samples"]]
    lines += ["", f"A word typical of the chosen side is in {found['chosen_before']} of the {found['texts']} texts "
              f"of the base model and in {found['chosen_after']} of the tuned model; one typical of the rejected side "
              f"in {found['rejected_before']} and {found['rejected_after']}.", ""]  # fmt: skip
    for kind, words in found["words"].items():
        shown = ", ".join(f'"{word}"' for word in words) or "none"
        lines.append(f"- Of the {found['known'][kind]} words typical of the {kind} side, these texts have {shown}.")
    return "\n".join(lines) + "\n"


def main() -> None:
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1])
        outputs = {verb: run(words, folder) for verb, words in commands(PAGE.read_text()).items()}
        rows = json.loads((folder / DATA).read_text())
        samples = [json.loads(line) for line in (folder / "runs/polite/samples.jsonl").read_text().splitlines()]
        found = {"outputs": outputs, "judged": judged(samples, criterion(rows))}
        RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    PAGE.write_text(filled(PAGE.read_text(), json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
