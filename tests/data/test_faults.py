"""Small inputs that once failed, by the symptoms of public reports, with the right outcome of each."""

from __future__ import annotations

import csv
import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from prefopt.data import DataConfig, prepare
from prefopt.errors import UserError
from tests.data.tiny import tokenizer

TEMPLATES = Path(__file__).parent / "templates"
HI, PAIR = {"role": "user", "content": "Hi"}, {"prompt": "q", "chosen": "a", "rejected": "b"}
HAMLET = {"chosen": "The author was William Shakespeare.", "rejected": "The author was Ben Jonson."}
AUTHOR = "user\nWho wrote Hamlet?<|im_end|>"


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def judged(*verdicts: Any, column: str = "winner", names: str = "ab") -> list[dict[str, Any]]:
    one, two = (f"response_{name}" for name in names)
    return [{"prompt": f"q{i}", one: "first", two: "second", column: v} for i, v in enumerate(verdicts)]


def cells(*rows: list[str]) -> str:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue()


PIRATE = {"role": "system", "content": "You are a pirate."}
SIDES = {"chosen": [HI, says("Arr!")], "rejected": [HI, says("Hello.")]}
THOUGHT = {"chosen": "<think>\ntwo\n</think>\n\nFive.", "rejected": "<think>\nno\n</think>\n\nSix."}
# name -> (rows, the number kept, the reasons of the others, part of the first record's text, settings)
KEPT: dict[str, tuple[list[dict[str, Any]], int, list[str], str, dict[str, Any]]] = {
    "F3 a system turn": ([{"prompt": [PIRATE, HI], **SIDES}], 1, [], "You are a pirate.", {}),
    "F3 another prompt": ([{"prompt": [{**HI, "content": "Bye"}], **SIDES}, PAIR], 1, ["prompt_mismatch"], "q", {}),
    "F7 a block of thoughts": ([{"prompt": [HI], **THOUGHT}, PAIR], 1, ["unclosed_block"], "<think>\ntwo\n</think>",
                               {"template": str(TEMPLATES / "deepseek_r1.jinja")}),
    "F8 a prefill": ([{"prompt": [HI, says("The capital is")], "chosen": " Paris.", "rejected": " Rome."}], 1, [],
                     "assistant\nThe capital is Paris.<|im_end|>", {}),
    "F17 an end token": ([{**PAIR, "chosen": "Hi<|im_end|>"}, PAIR], 1, ["end_token_inside"], "q", {}),
    "H1 codes with a meaning": (judged(0, 1, column="label"), 2, [], "first",
                                {"verdicts": {0: "first", 1: "second", 2: "tie"}}),
    **{f"H2 {name}": ([{name: "Who wrote Hamlet?", **HAMLET}], 1, [], AUTHOR, {})
       for name in ("query", "input", "context", "messages", "conversation", "history", "user", "human", "post",
                    "problem", "text")},
    "H8 comparisons": (judged("A>B", "A>>B", "[[A]]", names="AB"), 3, [], "first", {}),
    "H9 the first records": ([{**PAIR, "prompt": f"q{i}"} for i in range(64)], 60, [], "q0", {"max_records": 60}),
}  # fmt: skip


@cache
def made() -> Any:
    source = (TEMPLATES / "qwen.jinja").read_text(encoding="utf-8")
    return tokenizer(source, eos="<|im_end|>", special=("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"))


def prepared(path: Path, **settings: Any) -> Any:
    return prepare(DataConfig(path=str(path), eval_records=0, **settings), made(), None)


@pytest.mark.parametrize("name", KEPT)
def test_what_is_kept_and_what_is_rejected(name: str, tmp_path: Path) -> None:
    rows, kept, reasons, said, settings = KEPT[name]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = prepared(path, **settings)
    record = found.train[0]
    assert (len(found.train), [r.reason for r in found.rejections]) == (kept, reasons)
    assert said in made().decode([*record.prompt, *record.completions[0]])


def test_codes_without_a_meaning_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in judged(0, 1, column="label")))
    with pytest.raises(UserError, match=r"data\.verdicts=\{0: first, 1: second, 2: tie\}"):
        prepared(path)


def test_a_context_beside_the_prompt(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"question": f"q{i}", "context": context, "chosen": "a", "rejected": "b"}
            for i, context in enumerate(["A play.", None])]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(r.source, r.reason) for r in prepared(path).rejections] == [("rows.jsonl:0", "unread_input")]
    assert len(prepared(path, ignore=["context"]).train) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (cells(["prompt", "chosen", "rejected"], [json.dumps([HI]), *(json.dumps([says(s)]) for s in "ab")]),
         "user\nHi<|im_end|>"),  # F4
        (cells(["prompt", "history", "chosen", "rejected"], ["q", "[]", "a", "b"]), "user\nq<|im_end|>"),  # H10
    ],
)  # fmt: skip
def test_structures_as_texts_of_cells(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(text)
    assert said in made().decode(prepared(tmp_path / "rows.csv").train[0].prompt)


def test_training_warns_of_what_the_doctor_finds(tmp_path: Path) -> None:
    row = {**PAIR, "prompt": "<|im_start|>user\nhi<|im_end|>", "score_chosen": 2, "score_rejected": 8}  # F12
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    found = prepared(tmp_path / "rows.jsonl")
    assert (found.counts["template_marks"], found.counts["chosen_scored_lower"]) == (1, 1)
    assert sum("marks of a chat template" in text or "higher score" in text for text in found.warnings) == 2


def test_a_file_of_a_prompt_and_rows_loses_nothing_in_silence(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps({"prompt": "q", "extra": [PAIR]}))  # B6
    assert prepared(tmp_path / "rows.json").counts["unread/extra"] == 1
