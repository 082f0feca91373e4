"""Defines what a reward is, and makes one of a Python function."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from prefopt.common.digest import FileState, of_files
from prefopt.data.images.inputs import decode_prompt
from prefopt.errors import UserError, first_line

LARGEST = 1e18  # float32 holds the square of such a score, which losses take


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A text that was written behind a prompt.

    Attributes:
        prompt, completion: token ids; a completion that ended has its end token.
        prompt_text, text: the same decoded, special tokens and so the end token included.
        ended: whether it ended by itself; otherwise it was cut off, and has no end token.
    """

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    prompt_text: str
    text: str
    ended: bool


def answer(tokenizer: Any, prompt: Sequence[int], completion: Sequence[int], ends: Sequence[int]) -> Answer:
    """The answer of some tokens; `ends` are those that end a text."""
    return Answer(
        prompt=tuple(prompt),
        completion=tuple(completion),
        prompt_text=decode_prompt(tokenizer, prompt),
        text=tokenizer.decode(list(completion)),
        ended=completion[-1] in ends,
    )


class Reward(Protocol):
    """Scores answers; higher is better.

    Attributes:
        name: what a run knows it by: another name is another reward.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, answers: Sequence[Answer], /) -> NDArray[np.float64]:
        """(n,) one score each."""
        ...


@dataclass(frozen=True)
class FunctionReward:
    """The reward of a function of texts: `function(prompts, completions)` gives one number for each completion."""

    name: str
    function: Callable[[list[str], list[str]], Sequence[float]]

    @property
    def digest(self) -> str | None:
        """Of the file that the function is written in; None for what is not in a file of Python."""
        try:
            file = inspect.getsourcefile(self.function)
        except TypeError:  # not written in Python, or an object that is called
            return None
        return None if file is None or not os.path.isfile(file) else of_files([FileState.of(Path(file))])

    def __call__(self, answers: Sequence[Answer], /) -> NDArray[np.float64]:
        prompts, texts = [a.prompt_text for a in answers], [a.text for a in answers]
        try:
            given: Any = self.function(prompts, texts)
        except (Exception, SystemExit) as error:  # anybody's code
            raise UserError(f"reward={self.name} failed: {type(error).__name__}: {first_line(error)}; "
                            "PREFOPT_TRACEBACK=1 shows where") from error  # fmt: skip
        return scores_of(given, answers, self.name)


def scores_of(given: Any, answers: Sequence[Answer], name: str) -> NDArray[np.float64]:
    """What a reward gave as (n,) float64.

    Raises:
        UserError: not one finite number for each answer; the message names the first.
    """
    try:
        found = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:  # torch's, of tensors that are not plain numbers
        raise UserError(f"reward={name} must give numbers, one for each completion: {first_line(error)}") from error
    if found.shape != (len(answers),):
        raise UserError(f"reward={name} gave numbers of shape {found.shape} for {len(answers)} completions: it must "
                        "give one for each")  # fmt: skip
    usable = np.abs(found) <= LARGEST  # not NaN
    if not usable.all():
        at = int(np.flatnonzero(~usable)[0])
        raise UserError(f"reward={name} gave {found[at]} for the completion {answers[at].text[:200]!r}: every score "
                        f"must be a number of at most {LARGEST:g}")  # fmt: skip
    return found


def from_function(name: str) -> FunctionReward:
    """The reward of `module:function` or `file.py:function`; modules are also looked for in the current folder.

    Raises:
        UserError: there is no such function, or its module cannot be imported.
    """
    module, _, function = name.rpartition(":")
    try:
        found = _from_file(Path(module)) if module.endswith(".py") else _from_module(module)
    except (Exception, SystemExit) as error:  # anybody's code
        raise UserError(f"reward={name}: {module} cannot be imported: {type(error).__name__}: "
                        f"{first_line(error)}") from error  # fmt: skip
    value = getattr(found, function, None)
    if not callable(value):
        raise UserError(f"reward={name}: {module} has no function {function!r}")
    return FunctionReward(name, value)


def _from_module(name: str) -> Any:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    finally:
        if added:
            sys.path.remove(here)


def _from_file(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
