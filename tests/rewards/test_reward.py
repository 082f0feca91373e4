"""Rewards of Python functions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from prefopt.errors import UserError
from prefopt.rewards import Answer, from_function
from prefopt.rewards.reward import answer, scores_of


def decode(ids: list[int], skip_special_tokens: bool = False) -> str:
    return " ".join(str(token) for token in ids if not (skip_special_tokens and token < 3))


TOKENIZER = SimpleNamespace(decode=decode)
ANSWERS = [answer(TOKENIZER, [1, 5], [6, 2], [2]), answer(TOKENIZER, [1, 5], [6, 7], [2])]


def test_an_answer_keeps_its_end_token() -> None:
    """Without it, a reward cannot tell a text that ended from one that was cut off."""
    found = answer(TOKENIZER, [1, 5], [6, 2], [2])
    assert found == Answer(prompt=(1, 5), completion=(6, 2), prompt_text="1 5", text="6 2", ended=True)


def test_a_text_that_was_cut_off_has_no_end_token() -> None:
    """Whatever its prompt has."""
    found = answer(TOKENIZER, [1, 5, 2, 8], [6, 7], [2])
    assert found.text == "6 7"
    assert not found.ended


@pytest.mark.parametrize("by", ["file", "module"])
def test_a_function_scores_texts(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / f"mine_{by}.py"
    file.write_text(
        "def short(prompts, completions):\n    return [-len(p + c) for p, c in zip(prompts, completions)]\n"
    )
    monkeypatch.chdir(tmp_path)
    reward = from_function(f"{file}:short" if by == "file" else "mine_module:short")
    np.testing.assert_array_equal(reward(ANSWERS), [-6, -6])
    assert reward.name.endswith(":short")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module_here:f", "no_such_module_here cannot be imported: ModuleNotFoundError"),
        ("no_such_file.py:f", r"no_such_file\.py cannot be imported: FileNotFoundError: no such file"),
        ("math:no_such_function", "math has no function 'no_such_function'"),
        ("math:pi", "math has no function 'pi'"),
    ],
)
def test_what_is_no_function_is_named(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_function(name)


def test_a_function_that_fails_is_named(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("def f(prompts, completions):\n    return [1 / 0]\n")
    with pytest.raises(UserError, match=r"reward=.*f\.py:f failed: ZeroDivisionError"):
        from_function(f"{tmp_path / 'f.py'}:f")(ANSWERS)


def test_a_function_or_module_that_exits_does_not_end_the_run_as_if_it_were_done(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("import sys\n\ndef f(prompts, completions):\n    sys.exit(0)\n")
    with pytest.raises(UserError, match=r"reward=.*f\.py:f failed: SystemExit: 0"):
        from_function(f"{tmp_path / 'f.py'}:f")(ANSWERS)
    (tmp_path / "script.py").write_text("raise SystemExit\n")
    with pytest.raises(UserError, match=r"script\.py cannot be imported: SystemExit"):
        from_function(f"{tmp_path / 'script.py'}:f")


@pytest.mark.parametrize(
    "given",
    [
        [1, 2],
        (True, False),
        torch.tensor([0.5, 1.0]),
        [torch.tensor(0.5), torch.tensor(1.0)],
        np.array([1.0, 2.0], np.float32),
    ],
)
def test_numbers_of_any_kind_are_scores(given: Any) -> None:
    found = scores_of(given, ANSWERS, "mine")
    assert found.dtype == np.float64
    assert found.tolist() == [float(value) for value in given]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "shape"),
        ([None, 1.0], "gave nan for the completion"),
        ([1.0, float("inf")], "gave inf for the completion"),
        ([1.0, -1e19], r"gave -1e\+19 for the completion"),
        (torch.ones(2, requires_grad=True), "must give numbers"),
        (torch.ones(2, device="meta"), "must give numbers"),
        (torch.ones(2, dtype=torch.bfloat16), "must give numbers"),
        (np.ones((2, 1)), "shape"),
        (3.0, "shape"),
        ({"a": 1.0}, "must give numbers"),
        ((x for x in (1.0, 2.0)), "must give numbers"),
    ],
)
def test_what_is_not_one_number_a_text_is_refused(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"reward=mine .*{message}"):
        scores_of(given, ANSWERS, "mine")
