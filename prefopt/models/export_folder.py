"""Exports a model to a folder that plain transformers loads, checked by a fresh process, and uploads it to the hub."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import torch
from huggingface_hub.errors import HfHubHTTPError

from prefopt.common.files import new_folder
from prefopt.data.images.inputs import inputs_of
from prefopt.data.tokens import TokenRecord
from prefopt.engine.forward import is_reward_model, unwrap
from prefopt.engine.gates import TOLERANCE
from prefopt.engine.limits import learned_positions
from prefopt.engine.scoring import score
from prefopt.errors import PrefoptError, disk_full, first_line
from prefopt.models.export_images import export_images, with_pictures
from prefopt.models.processor import copy_processor
from prefopt.models.reward_model import FACTS
from prefopt.plugin import Data

PROBES = 4
SCORES = 1e-4  # the tolerance of a reward model's scores in float32
TURNS = [{"role": "user", "content": "Name a colour."}]


@dataclass(frozen=True)
class ExportCheck:
    """The largest error of a token's log-prob over the probes, and the tolerance for it, in nats.

    Of a reward model that of a text's score, alone and in batches that are padded on either side.
    """

    error: float
    tolerance: float
    tokens: int


def export_model(
    model: Any,
    trained: Any,
    tokenizer: Any,
    target: Path,
    *,
    source: str,
    texts: Sequence[list[int]] = (),
    readme: Callable[[ExportCheck], str] | None = None,
) -> ExportCheck:
    """Write a model and its tokenizer to a folder, which appears whole, and only if a fresh process finds it right.

    Args:
        model: the model to write, with adapters merged.
        trained: the model as training left it, to check against.
        tokenizer: its tokenizer.
        target: the folder to make; absent or empty.
        source: the model's folder, whose processor is copied.
        texts: token ids of texts that the model is about, for the check.
        readme: makes the content of `README.md` from what the check found.

    Raises:
        PrefoptError: what was written does not load or is another model, or the disk is full.
    """
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    try:
        with new_folder(target) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            copy_processor(source, folder)
            if Path(source, FACTS).is_file():
                shutil.copy(Path(source, FACTS), folder / FACTS)
            found = check(folder, trained, tokenizer, dtype, texts)
            if readme is not None:
                (folder / "README.md").write_text(readme(found), encoding="utf-8")
    except PrefoptError:
        raise
    except Exception as error:  # each library has its own for a full disk: OSError, RuntimeError, SafetensorError
        remedy = "; free some space and start again" if disk_full(error) else ""
        raise PrefoptError(f"could not write {target}: {first_line(error)}{remedy}") from error
    return found


def probes(model: Any, texts: Sequence[list[int]]) -> list[TokenRecord]:
    """Sequences to score: random tokens, and the beginnings of texts that the model is about."""
    config = model.config.get_text_config()
    longest = min(48, int(getattr(config, "max_position_embeddings", None) or 48))
    rng = np.random.default_rng(0)
    made = [rng.integers(0, config.vocab_size, longest - 8 * i) for i in range(PROBES)]
    if is_reward_model(unwrap(model)):  # a batch of eight, of texts that do not end with padding
        made = [ids[: len(ids) - n] for ids in made for n in range(2)]
        for ids in made:
            ids[-1] += int(ids[-1] == config.pad_token_id) * (1 if ids[-1] == 0 else -1)
    seen = inputs_of(unwrap(model))
    made += [np.array(text[:longest]) for text in texts if len(text) >= 4]
    if seen is not None:  # tokens that stand for images would ask for some
        words = np.setdiff1d(np.arange(config.vocab_size), seen.reserved)
        made = [np.where(np.isin(ids, seen.reserved), words[0], ids) for ids in made]
    return [
        TokenRecord(id=str(i), kind=Data.DEMONSTRATIONS, prompt=ids[: len(ids) // 2].astype(np.int32),
                    completions=(ids[len(ids) // 2 :].astype(np.int32),))
        for i, ids in enumerate(made)
    ]  # fmt: skip


def check(
    folder: Path, trained: Any, tokenizer: Any, dtype: torch.dtype, texts: Sequence[list[int]] = ()
) -> ExportCheck:
    """Compare an exported folder with the model as training left it.

    The tolerance is how far two correct computations of a token's log-prob may be apart in the coarser precision of
    the two (`prefopt.engine.gates.TOLERANCE`): the engine's of the trained model, adapters beside the weights, and a
    plain forward of the exported weights.

    Args:
        folder: what was exported.
        trained: the model as training left it.
        tokenizer: as exported.
        dtype: of the exported weights.
        texts: token ids of texts that the model is about.

    Raises:
        PrefoptError: the folder does not load, or is not the same model.
    """
    records = probes(trained, texts)
    scored = is_reward_model(unwrap(trained))
    turns = TURNS if tokenizer.chat_template else None
    request = {
        "folder": str(folder),
        "dtype": str(dtype).removeprefix("torch."),
        "sequences": [[r.prompt.tolist(), r.completions[0].tolist()] for r in records],
        "turns": turns,
        "reward_model": scored,
        "images": None,
    }
    compared = _score_check if scored else _logp_check
    with export_images(folder, trained) as (pictured, given):
        answer = _ask(folder, with_pictures(request, given))
        found = compared(answer, trained, [*records, *pictured], dtype)
    if not found.error <= found.tolerance:
        what, unit = ("a text's score", "") if scored else ("a token's log-prob", " nats")
        raise PrefoptError(f"the exported weights are not those of the run: {what} is {found.error:.2g}{unit} off, "
                           f"{found.tolerance:.2g} allowed; nothing was left")  # fmt: skip
    if turns is not None:
        rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        if answer["prompt"] != rendered:
            raise PrefoptError("the exported chat template gives another prompt than the run's; nothing was left")
    return found


def _logp_check(
    answer: dict[str, Any], trained: Any, records: Sequence[TokenRecord], dtype: torch.dtype
) -> ExportCheck:
    with torch.no_grad():
        expected = [s.token[0] for s in score(trained, records, max_tokens=2**31, tokens=True) if s.token is not None]
    off = [np.abs(np.array(got) - want).max() for got, want in zip(answer["logps"], expected, strict=True)]
    return ExportCheck(float(max(off)), _tolerance(trained, dtype), sum(map(len, expected)))


def _score_check(
    answer: dict[str, Any], trained: Any, records: Sequence[TokenRecord], dtype: torch.dtype
) -> ExportCheck:
    """A table of positions counts padding on the left, so that such a model must be padded on the right."""
    expected = np.array([s.sum[0] for s in score(trained, records, max_tokens=2**31)])
    ways = ["alone", "right", *(["left"] if learned_positions(unwrap(trained)) is None else [])]
    scores = {way: np.array(answer["scores"][way]) for way in ways}  # with images alone only
    off = max(float(np.abs(got - expected[: len(got)]).max()) for got in scores.values())
    allowed = _tolerance(trained, dtype)
    tokens = sum(len(r.prompt) + len(r.completions[0]) for r in records)
    return ExportCheck(off, SCORES if allowed <= TOLERANCE[torch.float32] else allowed, tokens)


def _tolerance(trained: Any, dtype: torch.dtype) -> float:
    own = next(p.dtype for p in trained.parameters() if p.is_floating_point())
    return max(TOLERANCE[own], TOLERANCE[dtype])


def _ask(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """The answer of a fresh interpreter without prefopt that loads the folder."""
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


def upload(folder: Path, repository: str) -> str:
    """Upload a folder to the hub, to a private repository if it is a new one, and return its address.

    Raises:
        PrefoptError: the hub rejects it.
    """
    try:
        api = huggingface_hub.HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Export of prefopt")
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise PrefoptError(
            f"could not upload to {repository}: {first_line(error)}; {folder} is complete: `hf auth login`, then "
            "`hf upload`"
        ) from error
    return f"https://huggingface.co/{repository}"
