"""Every command that help texts and pages show is one that prefopt accepts; blocks of `bash` also run (test_site.py).

A line of a block that shows commands is either prefopt's, whose verb, options, presets and losses are checked, or of
another program in OTHERS. Names in capitals stand for what a reader gives.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from prefopt.cli import _module
from prefopt.cli.compare_options import parse
from prefopt.cli.overrides import check_overrides
from prefopt.cli.verbs import VERBS
from prefopt.config.compose import compose
from prefopt.errors import UserError
from tests.docs.test_names import PAGES, ROOT
from tests.docs.test_site import blocks, commands

OTHERS = {"pip", "python", "make", "mkdocs", "pytest", "torchrun", "accelerate", "eval", "curl", "vllm", "git", "cat",
          ".", "export", "ssh", "rsync", "sbatch", "cd", "hf", "ruff", "mypy"}  # fmt: skip
LAUNCHED = re.compile(r"^(?:[A-Z_]+=\S+ |torchrun .*?-m |accelerate launch .*?-m |\.venv/bin/)+(?=prefopt)")
STANDS_FOR = {"FOLDER_OR_HUB_ID": "model", "MODEL": "model", "FILE": "pairs.jsonl", "...": "x", "NAME": "dpo"}
COMPOSED = ("train", "plan")


def from_page(page: Path) -> Iterator[str]:
    text = page.read_text()
    shown = [body for language, body in blocks(page) if language in ("", "text", "bash", "console")]
    shown += re.findall(r"(?:^ {4}\S.*\n)+", text, re.MULTILINE) if page.name == "README.md" else []
    for body in shown:
        lines = [LAUNCHED.sub("", line.strip().removeprefix("$ ")) for line in commands(body)]
        if lines and lines[0].split()[0] in (OTHERS | {"prefopt"}):
            yield from (f"{page.name}: {line}" for line in lines)


def from_help() -> Iterator[str]:
    for verb, about in VERBS.items():
        module = _module(verb)
        texts = [about.partition(": ")[2], getattr(module, "EXAMPLES", ""), getattr(module, "HELP", "")]
        for line in "\n".join(texts).replace("\\\n", " ").splitlines():
            if line.strip().startswith("prefopt "):
                for part in re.split(r", (?=prefopt )", line.strip()):
                    yield f"help of {verb}: {re.split(r' {3,}', part)[0]}"


@cache
def everything() -> list[tuple[str, list[str]]]:
    """(where, words) of each command of prefopt; the words in capitals are replaced."""
    found = []
    for line in [*from_help(), *(line for page in PAGES for line in from_page(page))]:
        where, _, command = line.partition(": ")
        for one in re.split(r"\s*;\s*(?=prefopt )", command.split(" <<")[0].removesuffix("|| true")):
            words = shlex.split(one, comments=True)
            found.append((where, [_given(word) for word in words if word != "..."]))
    return found


def _given(word: str) -> str:
    word = re.sub(r"\b(mypo|mypg|myloss)\b", "dpo", word.replace("mypo_short", "rafailov2023_dpo_world"))  # of examples
    name, equals, value = word.partition("=")
    return f"{name}={STANDS_FOR.get(value, value)}" if equals else STANDS_FOR.get(word, word)


def ours() -> list[tuple[str, list[str]]]:
    return [(where, words[1:]) for where, words in everything() if words and words[0] == "prefopt"]


def test_every_line_of_a_block_of_commands_is_classified() -> None:
    unknown = {f"{where}: {' '.join(words)}" for where, words in everything()
               if words and words[0] not in OTHERS and words[0] != "prefopt"}  # fmt: skip
    assert unknown == set()
    assert len(ours()) > 100


def test_every_verb_option_and_preset_exists(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "pairs.jsonl").touch()
    helps: dict[str, str] = {}
    wrong = []
    for where, (verb, *words) in ours():
        if verb in ("VERB", "--help"):
            continue
        assert verb in VERBS, (where, verb)
        own = words[: words.index("--")] if "--" in words else words
        try:
            check_overrides(verb, own)
        except UserError as error:
            wrong.append(f"{where}: {shlex.join([verb, *words])}: {str(error)[:120]}")
        flags = [word.partition("=")[0] for word in own if word.startswith("--")]
        sub = own[:1] if own and re.fullmatch(r"[a-z]+", own[0]) and verb in ("data", "losses", "reference") else []
        for flag in (flag for flag in flags if verb != "train"):
            key = " ".join([verb, *sub])
            if key not in helps:
                with pytest.raises(SystemExit):
                    _module(verb).main([*sub, "--help"])
                helps[key] = capsys.readouterr().out
            if flag not in helps[key]:
                wrong.append(f"{where}: {shlex.join([verb, *words])}: no {flag}")
    assert wrong == []


@pytest.mark.slow
def test_every_run_and_comparison_composes(
    model_folder: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(model_folder)
    (tmp_path / "pairs.jsonl").symlink_to(pairs_file)
    wrong = []
    for where, (verb, *words) in ours():
        overrides = [word for word in words if re.match(r"[+~]?[\w./@]+=", word)]
        if "-m" in words:
            overrides = [re.sub(r"=([^\[{,]+),.*", r"=\1", word) for word in overrides if "(" not in word]
        missing = [word for word in overrides if word.startswith("experiment=") and word.endswith(".yaml")]
        try:
            if verb in COMPOSED and not missing and "--model-shape" not in words:
                compose(overrides)
            elif verb == "compare" and "--help" not in words:
                parse([word for word in words if word in overrides])
        except UserError as error:
            wrong.append(f"{where}: {shlex.join([verb, *words])}: {str(error)[:120]}")
    assert wrong == []


def test_the_pages_are_those_of_the_project() -> None:
    assert {page.name for page in PAGES} >= {"README.md", "CONTRIBUTING.md", "index.md", "walkthrough.md"}
    assert (ROOT / "README.md").exists()
