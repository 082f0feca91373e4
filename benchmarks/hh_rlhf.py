"""Real pairs for the benchmarks: the harmless-base test split of hh-rlhf (Bai et al., 2022), from the user's folder.

`python benchmarks/hh_rlhf.py --model FOLDER` measures the lengths of all usable pairs in the tokens of a model and
writes them to `benchmarks/hh_rlhf_lengths.json` as quantiles and rank correlations: numbers only, without the texts.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import spearmanr

from prefopt.errors import UserError

FILE = "hh-rlhf/harmless-base-test.jsonl.gz"
SOURCE = "hh-rlhf, harmless-base, test split; https://github.com/anthropics/hh-rlhf (MIT)"
LENGTHS = Path(__file__).with_name("hh_rlhf_lengths.json")
NAMES = ("prompt", "chosen", "rejected")

_TURN = "\n\nAssistant:"


def data_folder(given: str | None = None) -> Path:
    """The folder with `hh-rlhf/`: the given one, `$PREFOPT_SHARED_DATA`, or `shared/data` next to the project."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(given or os.environ.get("PREFOPT_SHARED_DATA") or beside)
    if not (folder / FILE).is_file():
        raise UserError(f"there is no {folder / FILE}: download {SOURCE}, and give its folder as --data")
    return folder


def read_pairs(folder: Path) -> list[dict[str, str]]:
    """Usable rows as {prompt, chosen, rejected} strings, cut after the last common "Assistant:"."""
    pairs = []
    with gzip.open(folder / FILE, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            cut = row["chosen"].rindex(_TURN) + len(_TURN)
            prompt, chosen, rejected = row["chosen"][:cut], row["chosen"][cut:], row["rejected"][cut:]
            same_prompt = row["rejected"].startswith(prompt) and _TURN not in rejected
            if same_prompt and chosen.strip() and rejected.strip() and chosen != rejected:
                pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return pairs


def tokenize(pairs: list[dict[str, str]], tokenizer: Any) -> list[tuple[list[int], list[int], list[int]]]:
    """Token ids (prompt, chosen, rejected), cut at the longest common token prefix; completions end with EOS."""
    tokens = []
    for pair in pairs:
        prompt = tokenizer(pair["prompt"])["input_ids"]
        sides = [tokenizer(pair["prompt"] + pair[side])["input_ids"] for side in ("chosen", "rejected")]
        columns = zip(prompt, *sides, strict=False)
        common = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
        chosen, rejected = ([*side[common:], tokenizer.eos_token_id] for side in sides)
        tokens.append((prompt[:common], chosen, rejected))
    return tokens


def drawn(tokens: list[tuple[list[int], list[int], list[int]]], max_length: int) -> list[int]:
    """Indices of the pairs whose prompt and longer completion fit into `max_length`, in a fixed random order."""
    fitting = [i for i, (prompt, *sides) in enumerate(tokens) if len(prompt) + max(map(len, sides)) <= max_length]
    order: list[int] = np.random.Generator(np.random.PCG64(0)).permutation(fitting).tolist()
    return order


def sample_lengths(n: int, seed: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Lengths (n,) of prompts and (2 n,) of completions, resampled from the measured quantiles.

    A Gaussian copula with the measured rank correlations joins the three marginals. Lengths are drawn in blocks, so
    that memory stays near that of the result.
    """
    measured = json.loads(LENGTHS.read_text())
    correlation = 2 * np.sin(np.pi / 6 * np.array(measured["rank_correlation"]))  # Spearman's to Pearson's, normal
    root = np.linalg.cholesky(correlation)
    marginals = [np.array(measured["quantiles"][name]) for name in NAMES]
    grid = np.linspace(0, 1, len(marginals[0]))
    rng = np.random.Generator(np.random.PCG64(seed))
    prompt, completions = np.empty(n, np.int32), np.empty((n, 2), np.int32)
    for start in range(0, n, 2**18):
        stop = min(n, start + 2**18)
        uniform = ndtr(rng.standard_normal((stop - start, 3)) @ root.T)
        drawn = [np.rint(np.interp(uniform[:, i], grid, marginal)) for i, marginal in enumerate(marginals)]
        prompt[start:stop] = drawn[0]
        completions[start:stop] = np.stack(drawn[1:], axis=1)
    return prompt, completions.reshape(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder that holds hh-rlhf/")
    parser.add_argument("--model", required=True, help="folder or hub id of the tokenizer")
    args = parser.parse_args()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    pairs = read_pairs(data_folder(args.data))
    lengths = np.array([[len(part) for part in row] for row in tokenize(pairs, tokenizer)])
    summary = {
        "source": SOURCE,
        "tokenizer": "SmolLM2-135M-Instruct, completions closed by EOS",
        "pairs": len(pairs),
        "unit": "tokens",
        "mean": {name: round(float(lengths[:, i].mean()), 2) for i, name in enumerate(NAMES)},
        "quantiles": {
            name: np.quantile(lengths[:, i], np.linspace(0, 1, 201)).round(1).tolist() for i, name in enumerate(NAMES)
        },
        "rank_correlation": spearmanr(lengths).statistic.round(4).tolist(),
    }
    LENGTHS.write_text(json.dumps(summary) + "\n")
    print(f"{LENGTHS}: {len(pairs)} pairs, mean tokens {summary['mean']}")


if __name__ == "__main__":
    main()
