"""Prompts within `max_length`: whole exchanges or tokens go, completions and last turns stay."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data import DataConfig, Record, make, tokenize
from tests.data.test_templates import family_tokenizer
from tests.data.tiny import tokenizer

TURNS = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "The first question?"}, {"role": "assistant", "content": "The first answer."},
    {"role": "user", "content": "The second question?"}, {"role": "assistant", "content": "The second answer."},
    {"role": "user", "content": "The last question?"},
)  # fmt: skip
CHAT = make.pair(TURNS, "Yes, of course.", "No, of course not.")  # type: ignore[arg-type]


def whole(record: Record, config: DataConfig, made: Any) -> int:
    (row,) = tokenize([record], made, DataConfig(path="x", template=config.template)).records
    return len(row.prompt) + max(map(len, row.completions))


def shortened(truncation: str, cut: int) -> Any:
    made = family_tokenizer("qwen")
    size = whole(CHAT, DataConfig(path="x"), made)
    return tokenize([CHAT], made, DataConfig(path="x", max_length=size - cut, truncation=truncation)), made


def test_drop_is_the_default() -> None:
    result, _ = shortened("drop", 1)
    assert [r.reason for r in result.rejections] == ["too_long"]
    assert result.counts == {"rejected/too_long": 1, "records": 0, "truncated_prompts": 0}


@pytest.mark.parametrize(
    ("truncation", "gone", "stays"), [("keep_end", "first", "second"), ("keep_start", "second", "first")]
)
def test_whole_exchanges_go(truncation: str, gone: str, stays: str) -> None:
    result, made = shortened(truncation, 1)
    (row,) = result.records
    prompt = made.decode(row.prompt)
    assert f"The {gone} question?" not in prompt
    assert f"The {gone} answer." not in prompt
    assert f"The {stays} question?<|im_end|>" in prompt
    assert prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert prompt.endswith("<|im_start|>user\nThe last question?<|im_end|>\n<|im_start|>assistant\n")
    assert [made.decode(ids) for ids in row.completions] == [
        "Yes, of course.<|im_end|>",
        "No, of course not.<|im_end|>",
    ]
    assert result.counts["truncated_prompts"] == 1


@pytest.mark.parametrize("truncation", ["keep_end", "keep_start"])
def test_the_last_turn_is_never_cut(truncation: str) -> None:
    made = family_tokenizer("qwen")
    last = make.pair((TURNS[0], TURNS[-1]), "Yes, of course.", "No, of course not.")  # type: ignore[arg-type]
    size = whole(last, DataConfig(path="x"), made)
    fits = tokenize([CHAT], made, DataConfig(path="x", max_length=size, truncation=truncation))
    assert len(fits.records) == 1
    over = tokenize([CHAT], made, DataConfig(path="x", max_length=size - 1, truncation=truncation))
    assert [r.reason for r in over.rejections] == ["too_long"]


@pytest.mark.parametrize(("truncation", "kept"), [("keep_end", slice(-6, None)), ("keep_start", slice(1, 7))])
def test_plain_text_is_cut_by_tokens(truncation: str, kept: slice) -> None:
    made = tokenizer(bos="<s>", add_bos=True)
    record = make.pair("The quick brown fox jumps over the lazy dog:", " yes", " no")
    (full,) = tokenize([record], made, DataConfig(path="x")).records
    limit = 1 + 6 + max(map(len, full.completions))
    (row,) = tokenize([record], made, DataConfig(path="x", max_length=limit, truncation=truncation)).records
    assert row.prompt.tolist() == [full.prompt[0], *full.prompt[kept]]
    assert [ids.tolist() for ids in row.completions] == [ids.tolist() for ids in full.completions]


@pytest.mark.parametrize("truncation", ["keep_end", "keep_start"])
def test_completions_are_never_cut(truncation: str) -> None:
    record = make.pair("Q:", " a" * 50, " b" * 50)
    result = tokenize([record], tokenizer(), DataConfig(path="x", max_length=40, truncation=truncation))
    assert [r.reason for r in result.rejections] == ["too_long"]


WORDS = st.lists(st.sampled_from(["one", "two", "three", "four", "five", "six"]), min_size=1, max_size=12).map(" ".join)


@settings(max_examples=60)
@given(
    said=st.lists(WORDS, min_size=1, max_size=7).filter(lambda said: len(said) % 2 == 1), good=WORDS, bad=WORDS,
    limit=st.integers(20, 120), truncation=st.sampled_from(["keep_end", "keep_start"]),
)  # fmt: skip
def test_any_cut(said: list[str], good: str, bad: str, limit: int, truncation: str) -> None:
    if good == bad:
        return
    made = family_tokenizer("zephyr")
    turns = tuple({"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said))
    record = make.pair(turns, good, bad)  # type: ignore[arg-type]
    result = tokenize([record], made, DataConfig(path="x", max_length=limit, truncation=truncation))
    assert len(result.records) + len(result.rejections) == 1
    for row in result.records:
        assert len(row.prompt) + max(map(len, row.completions)) <= limit
        assert made.decode(row.prompt).endswith(f"<|user|>\n{said[-1]}</s>\n<|assistant|>\n")
        assert [made.decode(ids) for ids in row.completions] == [f"{good}</s>", f"{bad}</s>"]
