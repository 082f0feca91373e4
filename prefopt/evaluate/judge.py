"""Judges texts with the user's own judge: a reward model that scores one text, or a function that compares two.

A reward model is a folder that `AutoModelForSequenceClassification` loads, with one output. A decoder reads the tokens
that the policy read and wrote, the end token included (`prefopt.rewards.model`); an encoder reads prompt and text as
one string. Scores are averaged, and turned into wins prompt by prompt.

A function is named `module:function` and is called as

    judge(prompts, first, second) -> one number for each prompt

which is the probability that the first text is the better one: 1, 0, anything between, 0.5 for a tie. Texts keep their
end token, by which one that ended differs from one that was cut off. It is called
twice, with the texts in both orders, because judges favour a position (Zheng et al., 2023, https://arxiv.org/abs/2306.05685).
Its answers are kept until the file of the function changes.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from prefopt.common.digest import FileState, of_files, source_files
from prefopt.errors import UserError, first_line, of_machine
from prefopt.models.folder import check_files
from prefopt.models.identity import model_files
from prefopt.models.reward_model import set_padding

Floats = NDArray[np.float64]
Compare = Callable[[Sequence[str], Sequence[str], Sequence[str]], Sequence[float]]
Score = Callable[[Sequence[str], Sequence[str]], Floats]
BATCH = 16


def is_callable(judge: str) -> bool:
    """Whether a judge is a function; else it is a folder or a hub id."""
    module, _, name = judge.partition(":")
    return name.isidentifier() and all(part.isidentifier() for part in module.split(".")) and not Path(judge).exists()


def function(judge: str) -> Compare:
    """Import `module:function` from a module that is installed or in the current folder.

    Raises:
        UserError: there is no such function.
    """
    module, _, name = judge.partition(":")
    try:
        with _current_folder():
            found = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        kind = "" if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: "
        raise UserError(
            f"judge={judge}: {kind}{first_line(error)}; give module:function of a module that Python can import"
        ) from error
    if not callable(found):
        raise UserError(f"judge={judge} is not a function")
    return found  # type: ignore[no-any-return]


@contextlib.contextmanager
def _current_folder() -> Iterator[None]:
    """Find modules of the current folder too, after all others."""
    here = str(Path.cwd())
    importlib.invalidate_caches()
    sys.path.append(here)
    try:
        yield
    finally:
        del sys.path[len(sys.path) - 1 - sys.path[::-1].index(here)]


def check(judge: str) -> None:
    """Check a judge without loading its weights.

    Raises:
        UserError: there is no such function or reward model, or the model is a classifier with several outputs.
    """
    if is_callable(judge):
        function(judge)
        return
    with _explaining(judge):
        check_files(judge)
        _one_output(judge, AutoConfig.from_pretrained(judge, trust_remote_code=False))
        AutoTokenizer.from_pretrained(judge, trust_remote_code=False)
    if Path(judge).is_dir() and not any(Path(judge).glob("*.safetensors")):
        raise UserError(f"cannot load a reward model from judge={judge}: there are no *.safetensors in it")


@contextlib.contextmanager
def _explaining(path: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if of_machine(error):
            raise
        raise UserError(f"cannot load a reward model from judge={path}: {first_line(error)[:300]}") from error


def _one_output(path: str, config: Any) -> None:
    if config.num_labels != 1:
        raise UserError(f"judge={path} has {config.num_labels} outputs: a reward model has one")


def encoder(path: str) -> Score:
    """Load the reward model in `path` that is an encoder, and keep it until its files change; it gives (n,) scores of
    prompts and texts.

    Raises:
        UserError: there is no reward model, or a classifier with several outputs.
    """
    return _encoder(path, tuple(model_files(path)))


@lru_cache(maxsize=1)
def _encoder(path: str, files: tuple[FileState, ...]) -> Score:
    with _explaining(path):
        check_files(path)
        model = AutoModelForSequenceClassification.from_pretrained(path, use_safetensors=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    _one_output(path, model.config)
    set_padding(model, tokenizer)
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    def scores(prompts: Sequence[str], texts: Sequence[str]) -> Floats:
        whole = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
        found = []
        with torch.inference_mode():
            for start in range(0, len(whole), BATCH):
                batch = tokenizer(whole[start : start + BATCH], return_tensors="pt", padding=True).to(model.device)
                found.append(model(**batch).logits[:, 0].double().cpu().numpy())
        return np.concatenate(found) if found else np.zeros(0)

    return scores


def wins(judge: Compare, prompts: Sequence[str], texts: Sequence[str], others: Sequence[str]) -> Floats:
    """(n,) probabilities that `texts` beat `others`, each pair judged in both orders; equal texts tie.

    Raises:
        UserError: the function raises, or does not return n numbers from 0 to 1.
    """
    differ = [i for i, (a, b) in enumerate(zip(texts, others, strict=True)) if a != b]
    result = np.full(len(texts), 0.5)
    if differ:
        columns = ([column[i] for i in differ] for column in (prompts, texts, others))
        contexts, first, second = columns
        result[differ] = (_ask(judge, contexts, first, second) + 1 - _ask(judge, contexts, second, first)) / 2
    return result


def _ask(judge: Compare, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Floats:
    try:
        found = np.asarray(judge(prompts, first, second), dtype=np.float64)
    except (Exception, SystemExit) as error:  # the user's function may raise anything
        name = f"{getattr(judge, '__module__', '?')}:{getattr(judge, '__qualname__', judge)}"
        raise UserError(f"the judge {name} failed: {type(error).__name__}: {first_line(error)}; it is called as "
                        "judge(prompts, first, second); the same command calls it again") from error  # fmt: skip
    if found.shape != (len(prompts),) or not ((found >= 0) & (found <= 1)).all():
        raise UserError(f"the judge must return {len(prompts)} numbers from 0 to 1, one for each prompt")
    return found


def rule(judge: str) -> str:
    """The digest of the files in which a function is named and written: an edit voids its earlier answers."""
    module = judge.partition(":")[0]
    return of_files(source_files((module, getattr(function(judge), "__module__", module))))
