"""Whether an exported folder, loaded by plain transformers in a process of its own, is the model of the run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prefopt.data.tokens import TokenRecord
from prefopt.engine.gates import TOLERANCE
from prefopt.engine.scoring import score
from prefopt.errors import PrefoptError
from prefopt.plugin import Data

PROBES = 4
TURNS = [{"role": "user", "content": "Name a colour."}]


@dataclass(frozen=True)
class Check:
    """How far the log-prob of a token was off, at most, over the probes; and how far it may be. In nats."""

    error: float
    tolerance: float
    tokens: int


def probes(model: Any, texts: list[list[int]]) -> list[TokenRecord]:
    """Sequences to score: random tokens, and the beginnings of texts that the model is about."""
    config = model.config.get_text_config()
    longest = min(48, int(getattr(config, "max_position_embeddings", None) or 48))
    rng = np.random.default_rng(0)
    made = [rng.integers(0, config.vocab_size, longest - 8 * i) for i in range(PROBES)]
    made += [np.array(text[:longest]) for text in texts if len(text) >= 4]
    return [
        TokenRecord(id=str(i), kind=Data.DEMONSTRATIONS, prompt=ids[: len(ids) // 2].astype(np.int32),
                    completions=(ids[len(ids) // 2 :].astype(np.int32),))
        for i, ids in enumerate(made)
    ]  # fmt: skip


def check(folder: Path, model: Any, tokenizer: Any, dtype: torch.dtype, texts: list[list[int]]) -> Check:
    """Compare the folder with the run's own model.

    The tolerance is how far two correct computations of a token's log-prob may be apart in the coarser precision of
    the two (`prefopt.engine.gates.TOLERANCE`): the engine's of the run's model, adapters beside the weights, and a
    plain forward of the exported weights.

    Args:
        folder: what was exported.
        model: the run's, as training left it.
        tokenizer: as exported.
        dtype: of the exported weights.
        texts: of the model's domain, in tokens.

    Raises:
        PrefoptError: the folder does not load, or is not the same model.
    """
    records = probes(model, texts)
    turns = TURNS if tokenizer.chat_template else None
    request = {
        "folder": str(folder),
        "dtype": str(dtype).removeprefix("torch."),
        "sequences": [[r.prompt.tolist(), r.completions[0].tolist()] for r in records],
        "turns": turns,
    }
    answer = _ask(folder, request)
    with torch.no_grad():
        truth = [s.token[0] for s in score(model, records, max_tokens=2**31, tokens=True) if s.token is not None]
    off = [np.abs(np.array(got) - want).max() for got, want in zip(answer["logps"], truth, strict=True)]
    own = next(p.dtype for p in model.parameters() if p.is_floating_point())
    found = Check(float(max(off)), max(TOLERANCE[own], TOLERANCE[dtype]), sum(map(len, truth)))
    if not found.error <= found.tolerance:
        raise PrefoptError(f"the exported weights are not those of the run: a token's log-prob is {found.error:.2g} "
                           f"nats off, {found.tolerance:.2g} allowed; nothing was left")  # fmt: skip
    if turns is not None:
        rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        if answer["prompt"] != rendered:
            raise PrefoptError("the exported chat template gives another prompt than the run's; nothing was left")
    return found


def _ask(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """What a fresh interpreter without prefopt says of the folder."""
    script = Path(__file__).with_name("export_fresh.py")
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", str(script)],
        input=json.dumps(request), capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        why = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        raise PrefoptError(f"plain transformers cannot load the exported folder ({why}); nothing was left")
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer
