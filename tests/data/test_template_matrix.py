"""Ten chat templates with and without tools, a system turn, thinking, and the beginning of the answer, in every mix."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from prefopt.data import Record, tokenize
from prefopt.data.data_config import DataConfig
from prefopt.plugin import Data
from tests.data.test_spans import ADD, ENDLESS, FAMILIES, HI, SYSTEM, encoded, made, says, trained, whole

THINKING = ("qwen3", "smollm3")  # templates that read `enable_thinking`
MIXES = [*itertools.product((False, True), (False, True), (None, True, False), ("", "The capital"))]
BLOCK = "<think>\n\n</think>\n\n"  # which Qwen3 prints in a last turn without thoughts


def expected_reason(name: str, *, system: bool, tools: bool, thinking: bool | None) -> str | None:
    """Why a template cannot show this."""
    if (tools and FAMILIES[name].call is None) or (thinking is not None and name not in THINKING):
        return "unread_input"
    return "template_error" if system and not FAMILIES[name].system else None


def answers(name: str, begun: str, thinking: bool | None) -> tuple[str, str, str]:
    """(beginning of the answer, what is said, what is trained of it before its end)."""
    said = " Fine." if begun else "Fine."
    if name in ENDLESS:  # its header opens a block of thoughts, which answers close
        return (
            (f"<think>\nok\n</think>\n\n{begun}", said, said)
            if begun
            else ("", f"ok</think>{said}", f"ok</think>{said}")
        )
    block = BLOCK if name == "qwen3" and thinking is not False and not begun else ""
    return begun, said, block + said


@pytest.mark.parametrize("name", FAMILIES)
def test_every_mix_is_what_the_template_prints_or_a_rejection_by_name(name: str) -> None:
    family, tk, done = FAMILIES[name], made(name), 0
    for system, tools, thinking, begun in MIXES:
        arguments: dict[str, Any] = {"tools": [ADD]} if tools else {}
        arguments |= {} if thinking is None else {"enable_thinking": thinking}
        begun, said, expected = answers(name, begun, thinking)
        asked = [*([SYSTEM] if system else []), HI]
        prompt = (*asked, says(begun)) if begun else tuple(asked)
        reason = expected_reason(name, system=system, tools=tools, thinking=thinking)
        if reason is not None:
            record = Record(id="x", kind=Data.PAIRS, prompt=prompt, completions=(said, f"{said}!"), arguments=arguments)
            rejections = tokenize([record], tk, DataConfig(path="x")).rejections
            assert [r.reason for r in rejections] == [reason], (system, tools, thinking, begun)
            continue
        head, sides = encoded(tk, prompt, said, f"{said}!", arguments=arguments)
        before, after = family.plain
        ends = [f"{before if not begun else ''}{expected}{mark}{after}{family.end}" for mark in ("", "!")]
        assert [trained(spans) for spans in sides] == [[end] for end in ends], (system, tools, thinking, begun)
        if begun and name not in ENDLESS:  # the header of a given answer
            printed = whole(name, [*asked, says(begun)], **arguments).partition(begun)[0] + begun
        else:
            printed = whole(name, asked, add_generation_prompt=True, **arguments) + begun.removeprefix("<think>\n")
        assert head == printed, (system, tools, thinking, begun)
        assert ("Be kind." in head, "add" in head) == (system, tools)
        done += 1
    assert done >= (2 if not family.system else 4)
