"""Work without a bound is seen before it is done."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from prefopt.common.bounds import YAML_BYTES, check_yaml, is_costly

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{M}]*[\p{Ll}\p{Lm}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
)
KIMI = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}&&[^\p{Han}]]*[\p{Ll}&&[^\p{Han}]]+(?i:'s|'t)?|\p{N}{1,3}"
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"


@pytest.mark.parametrize(
    "pattern", [GPT2, GPT4, GPT4O, DEEPSEEK, KIMI, BLOOM, " {2,}", r"^▁+$", r"(?i)\d+-\d+-\d+", ""]
)
def test_expressions_of_published_tokenizers_are_allowed(pattern: str) -> None:
    assert not is_costly(pattern)


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(a|a)*b", "(a*)*", "(?:a?){50}a{50}", "((a+))+", r"(\w+\s?)*x", r"\s*\s*\s*\s*x", "(a+){10}", r"(a)\1+",
     "(?>x)(?:y{1,500}z?)+", r"(?<=b)(?P<n>a+)*", "a{0,200}a{0,200}a{0,200}a{0,200}b", "[]*]a|(a|b)+"],
)  # fmt: skip
def test_expressions_without_a_bound_are_seen(pattern: str) -> None:
    assert is_costly(pattern)


def test_classes_are_nested_in_tokenizers_alone() -> None:
    assert not is_costly("[[](a+)+]")
    assert is_costly("[[](a+)+]", nested=False)


def test_long_expressions_are_read_fast() -> None:
    began = time.process_time()
    is_costly("(a+[b(" * 1600)
    assert is_costly("x" * 20_000)
    assert time.process_time() - began < 20


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [(LAUGHS, "aliases"), ("a: &a [*a]", "aliases"), ("a: &a {b: *a}", "aliases"), ("#" * (YAML_BYTES + 1), "KiB")],
)
def test_yaml_that_grows_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=says):
        check_yaml(tmp_path / "config.yaml")


def test_yaml_with_a_few_aliases_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: &a [1, 2]\nb: [*a, *a]\n")
    check_yaml(tmp_path / "config.yaml")
