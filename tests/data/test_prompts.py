"""Prompts are read, never invented, and two sources of one prompt must agree."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.data import DataConfig, ReadResult, read
from prefopt.data.string_forms import parsed
from prefopt.errors import UserError

ANSWERS = {"chosen": "The author was William Shakespeare.", "rejected": "The author was Ben Jonson."}
ASKED = "Who wrote Hamlet?"


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


HI, PIRATE = said("user", "Hi"), said("system", "You are a pirate.")
DIALOGUES = {"chosen": [HI, said("assistant", "Arr!")], "rejected": [HI, said("assistant", "Hello.")]}


def reading(tmp_path: Path, row: dict[str, Any], **settings: Any) -> ReadResult:
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    return read(DataConfig(path=str(tmp_path / "a.jsonl"), **settings))


@pytest.mark.parametrize("name", ["query", "input", "context", "messages", "conversation", "history", "user", "human",
                                  "post", "problem", "text"])  # fmt: skip
def test_a_prompt_under_another_name_is_used(tmp_path: Path, name: str) -> None:
    assert reading(tmp_path, {name: ASKED, **ANSWERS}).records[0].prompt == ASKED
    assert reading(tmp_path, {name: [said("user", ASKED)], **ANSWERS}).records[0].prompt == (said("user", ASKED),)


@pytest.mark.parametrize("more", [{}, {"riddle": ASKED}, {"source": "web"}])
def test_no_prompt_is_made_of_answers(tmp_path: Path, more: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"no_shared_prompt.*data\.fields=\{prompt: COLUMN\}"):
        reading(tmp_path, {**more, **ANSWERS})


def test_two_columns_that_could_be_the_prompt(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="query and context could be the prompt"):
        reading(tmp_path, {"query": ASKED, "context": "A play.", **ANSWERS})


def test_a_dialogue_that_holds_an_answer_is_no_prompt(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ends with an answer"):
        reading(tmp_path, {"messages": DIALOGUES["chosen"], **ANSWERS})


@pytest.mark.parametrize("name", ["query", "context", "post"])
def test_a_judged_pair_with_a_prompt_of_another_name(tmp_path: Path, name: str) -> None:
    row = {name: ASKED, "response_a": "x", "response_b": "y", "winner": "B"}
    assert reading(tmp_path, row).records[0].prompt == ASKED


def test_a_prompt_column_adds_its_system_turn_to_dialogues(tmp_path: Path) -> None:
    assert reading(tmp_path, {"prompt": [PIRATE, HI], **DIALOGUES}).records[0].prompt == (PIRATE, HI)
    assert reading(tmp_path, {"prompt": [PIRATE], **DIALOGUES}).records[0].prompt == (PIRATE, HI)
    assert reading(tmp_path, {"prompt": "Hi ", **DIALOGUES}).records[0].prompt == (HI,)


@pytest.mark.parametrize("prompt", ["Bye", [said("user", "Bye")], [PIRATE, said("user", "Bye")]])
def test_a_prompt_column_that_contradicts_the_dialogues(tmp_path: Path, prompt: Any) -> None:
    with pytest.raises(UserError, match="prompt_mismatch"):
        reading(tmp_path, {"prompt": prompt, **DIALOGUES})


@pytest.mark.parametrize(
    "row",
    [DIALOGUES, {f"{side}_messages": turns for side, turns in DIALOGUES.items()},
     {"conversations": [HI], "chosen": "Arr!", "rejected": "Hello."}, {"prompt": [HI], "chosen": "a", "rejected": "b"},
     {"messages": [HI, said("assistant", "Arr!")]}, {"messages": [HI, said("assistant", "Arr!")], "label": True}],
)  # fmt: skip
def test_a_system_column_is_used_and_must_agree(tmp_path: Path, row: dict[str, Any]) -> None:
    assert reading(tmp_path, {"system": "You are a pirate.", **row}).records[0].prompt == (PIRATE, HI)
    doubled = json.loads(json.dumps(row).replace(json.dumps([HI])[1:-1], json.dumps([PIRATE, HI])[1:-1]))
    assert reading(tmp_path, {"system": "You are a pirate.", **doubled}).records[0].prompt == (PIRATE, HI)
    with pytest.raises(UserError, match="system"):
        reading(tmp_path, {"system": "You are a parrot.", **doubled})


@pytest.mark.parametrize("write", [json.dumps, repr])
def test_message_lists_in_the_cells_of_a_csv(tmp_path: Path, write: Any) -> None:
    row = {"prompt": [PIRATE, HI], "chosen": [said("assistant", "Arr!")], "rejected": [said("assistant", "Hello.")],
           "history": []}  # fmt: skip
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(row))
        writer.writeheader()
        writer.writerow({name: write(value) for name, value in row.items()})
    (record,) = read(DataConfig(path=str(tmp_path / "a.csv"))).records
    assert (record.prompt, record.completions) == ((PIRATE, HI), ("Arr!", "Hello."))


@pytest.mark.parametrize(
    "text", ["[1] see the notes", '{"answer": 4}', '[{"role": "admin", "name": "x"}]', "", "[", '["from" a b]', "{}"]
)
def test_texts_that_only_look_like_structures_stay(text: str) -> None:
    assert parsed({"prompt": text, "chosen": text}) == {"prompt": text, "chosen": text}


def test_lists_of_scores_and_pairs_of_history_as_text() -> None:
    row = {"completions": '["a", "b"]', "scores": "[1, 0.5]", "history": '[["q", "a"]]'}
    assert parsed(row) == {"completions": ["a", "b"], "scores": [1, 0.5], "history": [["q", "a"]]}


def test_an_answer_after_another_assistant_turn_is_a_paragraph_of_its_own(tmp_path: Path) -> None:
    row = {side: [HI, said("assistant", "Arr!"), said("assistant", side)] for side in ("chosen", "rejected")}
    (record,) = reading(tmp_path, row).records
    assert (record.prompt, record.completions) == ((HI, said("assistant", "Arr!\n\n")), ("chosen", "rejected"))
    given = {"prompt": [HI, said("assistant", "Arr")], "chosen": "!", "rejected": "?"}  # begun by the prompt: unchanged
    assert reading(tmp_path, given).records[0].prompt == (HI, said("assistant", "Arr"))
