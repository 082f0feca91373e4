"""Broken inputs: each is an error that says what to do, or a counted rejection; none passes, none is a traceback."""

from __future__ import annotations

import gzip
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from prefopt.data import DataConfig, read, tokenize
from prefopt.errors import UserError
from tests.data.tiny import tokenizer

OK = {"prompt": "Question?", "chosen": "Yes.", "rejected": "No."}


def lines(*rows: Any) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def pair(**changes: Any) -> dict[str, Any]:
    return {**OK, **changes}


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue()


def labelled(value: Any) -> bytes:
    row = {"prompt": "Q?", "completion": "A."}
    return lines({**row, "label": True}, {**row, "label": value})


def turns(*pairs: tuple[Any, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in pairs]


def scored(*scores: Any) -> bytes:
    good = {"prompt": "Q?", "completions": ["a", "b"], "scores": [1, 0]}
    return lines(good, {**good, "scores": list(scores)})


WHOLE = gzip.compress(lines(OK) * 50)
HELLO = turns(("user", "Hi"), ("assistant", "Hello"))
NESTED = b"[" * 100_000

# name -> (file name, bytes, what the error says)
ERRORS: dict[str, tuple[str, bytes, str]] = {
    "empty file": ("a.jsonl", b"", "is empty"),
    "empty list": ("a.json", b"[]", "no readable rows"),
    "empty object": ("a.json", b"{}", "fit no known schema"),
    "only blank lines": ("a.jsonl", b"\n\n  \n", "no readable rows"),
    "header only": ("a.csv", b"prompt,chosen,rejected\n", "no readable rows"),
    "truncated json": ("a.json", json.dumps([OK, OK]).encode()[:-20], "cannot be read"),
    "json scalar": ("a.json", b"42", "not a list of rows"),
    "json string": ("a.json", b'"text"', "not a list of rows"),
    "json null": ("a.json", b"null", "not a list of rows"),
    "list of strings": ("a.json", b'["a", "b"]', "not_a_row"),
    "list of lists": ("a.json", b'[["a", "b"]]', "not_a_row"),
    "deeply nested json": ("a.json", NESTED, "nested too deeply|cannot be read"),
    "deeply nested line": ("a.jsonl", NESTED + b"\n", "not_a_row"),
    "python literals": ("a.jsonl", b"{'prompt': 'a'}\n", "not_a_row"),
    "gz that ends early": ("a.jsonl.gz", WHOLE[: len(WHOLE) // 2], "cannot be read"),
    "gz that is none": ("a.jsonl.gz", lines(OK), "cannot be read"),
    "zst that is none": ("a.jsonl.zst", lines(OK), "cannot be read"),
    "parquet that is none": ("a.parquet", lines(OK), "cannot be read"),
    "parquet cut short": ("a.parquet", parquet(pa.table({"prompt": ["a"] * 100}))[:-30], "cannot be read"),
    "arrow that is none": ("a.arrow", b"ARROW1 but not really", "cannot be read"),
    "utf-16 without a mark": ("a.jsonl", lines(OK, OK).decode().encode("utf-16-le"), "not_a_row"),
    "utf-16 cut short": ("a.jsonl", lines(OK, OK).decode().encode("utf-16")[:-1], "cannot be read"),
    "latin-1 csv": ("a.csv", "prompt,chosen,rejected\né,b,c\n".encode("latin-1"), "cannot be read"),
    "binary": ("a.jsonl", bytes(range(256)), "not_a_row"),
    "unknown extension": ("a.txt", lines(OK), "unknown format"),
    "no extension": ("data", lines(OK), "unknown format"),
    "pickle": ("a.pkl", b"\x80\x04.", "unknown format"),
    "unknown columns": ("a.jsonl", lines({"text": "a", "score": 1}), "data.fields"),
    "one side only": ("a.jsonl", lines({"prompt": "a", "chosen": "b"}), "data.fields"),
    "zero-row parquet": ("a.parquet", parquet(pa.table({"prompt": pa.array([], pa.string())})), "no readable rows"),
    "repeated parquet column": (
        "a.parquet",
        parquet(pa.table([["a"], ["b"], ["c"], ["d"]], ["prompt", "chosen", "rejected", "prompt"])),
        "twice",
    ),
    "repeated key in a list": ("a.json", b'[{"prompt": "a", "prompt": "b", "chosen": "c"}]', "'prompt' occurs twice"),
    "windows-1252 csv": ("a.csv", "prompt,chosen,rejected\na,caf\u00e9,c\n".encode("cp1252"), "not UTF-8.*iconv"),
    "windows-1252 json": ("a.json", '[{"prompt": "caf\u00e9"}]'.encode("cp1252"), "not UTF-8.*iconv"),
    "quotes in a csv cell": ("a.csv", b'prompt,chosen,rejected\na,"b "x" c",d\n', "line 2: "),
    "repeated csv column": ("a.csv", b"prompt,chosen,chosen\na,b,c\n", "twice"),
    "unclosed csv quote": ("a.csv", b'prompt,chosen,rejected\n"a,b,c\n', "cannot be read|not_a_row"),
    "all nulls": ("a.jsonl", lines({"prompt": None, "chosen": None, "rejected": None}), "fit no known schema"),
    "no usable row": ("a.jsonl", lines(pair(chosen=" ")), "empty_completion"),
    "columns of unequal length": ("a.json", b'{"prompt": ["a", "b"], "chosen": ["c"]}', "fit no known schema"),
}

# name -> (file name, bytes, reason -> count); every file also has one good row
REJECTIONS: dict[str, tuple[str, bytes, dict[str, int]]] = {
    "truncated line": ("a.jsonl", lines(OK) + lines(OK)[:-20], {"not_a_row": 1}),
    "line that is a list": ("a.jsonl", lines(OK, ["a", "b"]), {"not_a_row": 1}),
    "line that is a number": ("a.jsonl", lines(OK, 7), {"not_a_row": 1}),
    "line that is null": ("a.jsonl", lines(OK, None), {"not_a_row": 1}),
    "invalid utf-8 line": ("a.jsonl", lines(OK, b'{"prompt": "\xff\xfe"}'), {"not_a_row": 1}),
    "trailing comma": ("a.jsonl", lines(OK, b'{"prompt": "a",}'), {"not_a_row": 1}),
    "repeated key": (
        "a.jsonl", lines(OK, b'{"prompt": "a", "prompt": "b", "chosen": "c", "rejected": "d"}'), {"not_a_row": 1},
    ),
    "windows-1252 line": ("a.jsonl", lines(OK) + '{"prompt": "caf\u00e9"}'.encode("cp1252"), {"not_a_row": 1}),
    "a list in the wrong file": ("a.jsonl", json.dumps([OK, 7]).encode(), {"not_a_row": 1}),
    "number too long to read": ("a.jsonl", lines(OK, b'{"n": ' + b"1" * 5000 + b"}"), {"not_a_row": 1}),
    "short csv line": ("a.csv", b"prompt,chosen,rejected\na,b,c\na,b\n", {"not_a_row": 1}),
    "long csv line": ("a.csv", b"prompt,chosen,rejected\na,b,c\na,b,c,d\n", {"not_a_row": 1}),
    "csv without an answer": ("a.csv", b"prompt,chosen,rejected\na,b,c\na,,c\n", {"empty_completion": 1}),
    "true for a string": ("a.jsonl", lines(OK, pair(chosen=True)), {"wrong_type": 1}),
    "number for a string": ("a.jsonl", lines(OK, pair(rejected=3)), {"wrong_type": 1}),
    "object for a prompt": ("a.jsonl", lines(OK, pair(prompt={"text": "a"})), {"wrong_type": 1}),
    "list of strings for a side": ("a.jsonl", lines(OK, pair(chosen=["a", "b"])), {"wrong_type": 1}),
    "nested lists": ("a.jsonl", lines(OK, pair(chosen=[[["a"]]])), {"wrong_type": 1}),
    "null side": ("a.jsonl", lines(OK, pair(chosen=None)), {"missing_field": 1}),
    "missing side": ("a.jsonl", lines(OK, {"prompt": "a", "chosen": "b"}), {"missing_field": 1}),
    "another schema in the file": (
        "a.jsonl", lines(OK, OK, {"messages": HELLO, "label": True}), {"missing_field": 1},
    ),
    "empty prompt": ("a.jsonl", lines(OK, pair(prompt="")), {"empty_prompt": 1}),
    "blank prompt": ("a.jsonl", lines(OK, pair(prompt=" \n\t")), {"empty_prompt": 1}),
    "empty chosen": ("a.jsonl", lines(OK, pair(chosen="")), {"empty_completion": 1}),
    "blank rejected": ("a.jsonl", lines(OK, pair(rejected="\u00a0\n")), {"empty_completion": 1}),
    "invisible chosen": ("a.jsonl", lines(OK, pair(chosen="\u200b\ufeff")), {"empty_completion": 1}),
    "identical sides": ("a.jsonl", lines(OK, pair(rejected="Yes.")), {"identical_sides": 1}),
    "lone surrogate": ("a.jsonl", lines(OK, pair(chosen="\ud800")), {"bad_unicode": 1}),
    "ten megabytes in a field": ("a.jsonl", lines(OK, pair(prompt="word " * 2_000_000)), {"too_long": 1}),
    "ten megabytes in an answer": ("a.jsonl", lines(OK, pair(chosen="word " * 2_000_000)), {"too_long": 1}),
    "over the limit": ("a.jsonl", lines(OK, pair(prompt="word " * 2_000)), {"too_long": 1}),
    "unknown role": ("a.jsonl", lines(OK, pair(prompt=turns(("wizard", "Hi")))), {"unknown_role": 1}),
    "role that is a number": ("a.jsonl", lines(OK, pair(prompt=turns((1, "Hi")))), {"unknown_role": 1}),
    "message without content": ("a.jsonl", lines(OK, pair(prompt=[{"role": "user"}])), {"missing_field": 1}),
    "message with a number": ("a.jsonl", lines(OK, pair(prompt=turns(("user", 1)))), {"wrong_type": 1}),
    "message that is a string": (
        "a.jsonl", lines(OK, pair(prompt=[{"role": "user", "content": "Hi"}, "Hello"])), {"wrong_type": 1},
    ),
    "picture that is not there": (
        "a.jsonl", lines(OK, pair(prompt=turns(("user", [{"type": "image", "image": "x"}])))), {"image_missing": 1},
    ),
    "film": (
        "a.jsonl", lines(OK, pair(prompt=turns(("user", [{"type": "video", "video": "x"}])))), {"not_text": 1},
    ),
    "answer by the user": (
        "a.jsonl", lines(OK, pair(chosen=turns(("user", "Hi")))), {"not_an_answer": 1},
    ),
    "dialogues that part at a turn of the user": (
        "a.jsonl",
        lines({"chosen": HELLO, "rejected": turns(("user", "Hi"), ("assistant", "Go"))},
              {"chosen": [*HELLO, *HELLO], "rejected": [*HELLO, *turns(("user", "Bye"), ("assistant", "Go"))]}),
        {"prompt_mismatch": 1},
    ),
    "dialogue that ends with the user": (
        "a.jsonl", lines({"messages": HELLO}, {"messages": HELLO[:1]}), {"not_an_answer": 1},
    ),
    "answer to nothing": ("a.jsonl", lines({"messages": HELLO}, {"messages": HELLO[1:]}), {"empty_prompt": 1}),
    "no messages": ("a.jsonl", lines({"messages": HELLO}, {"messages": []}), {"empty_messages": 1}),
    "messages in a broken string": ("a.jsonl", lines({"messages": HELLO}, {"messages": "[{'role'"}), {"wrong_type": 1}),
    "different dialogues": (
        "a.jsonl",
        lines({"chosen": HELLO, "rejected": turns(("user", "Hi"), ("assistant", "Go"))},
              {"chosen": HELLO, "rejected": turns(("user", "Bye"), ("assistant", "Go"))}),
        {"prompt_mismatch": 1},
    ),
    "nothing in common": (
        "a.jsonl", lines({"chosen": "Q: a A: b", "rejected": "Q: a A: c"}, {"chosen": "xa", "rejected": "yb"}),
        {"no_shared_prompt": 1},
    ),
    "transcript without an answer": (
        "a.jsonl",
        lines({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
              {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "rejected": "\n\nHuman: a\n\nAssistant: c"}),
        {"not_an_answer": 1},
    ),
    "transcript that is none": (
        "a.jsonl",
        lines({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
              {"chosen": "a b", "rejected": "\n\nHuman: a\n\nAssistant: c"}),
        {"not_a_transcript": 1},
    ),
    "label NaN": ("a.jsonl", labelled(float("nan")), {"not_finite": 1}),
    "label 2": ("a.jsonl", labelled(2), {"bad_label": 1}),
    "label in words": ("a.jsonl", labelled("perhaps"), {"bad_label": 1}),
    "label that is a list": ("a.jsonl", labelled([True]), {"bad_label": 1}),
    "label null": ("a.jsonl", labelled(None), {"missing_field": 1}),
    "score NaN": ("a.jsonl", scored(float("nan"), 1), {"not_finite": 1}),
    "score infinite": ("a.jsonl", scored(float("inf"), 1), {"not_finite": 1}),
    "score true": ("a.jsonl", scored(True, 1), {"wrong_type": 1}),
    "score in words": ("a.jsonl", scored("high", 1), {"wrong_type": 1}),
    "too few scores": ("a.jsonl", scored(1), {"score_count": 1}),
    "a list of one": (
        "a.jsonl",
        lines({"prompt": "Q?", "completions": ["a", "b"], "scores": [1, 0]},
              {"prompt": "Q?", "completions": ["a"], "scores": [1]}),
        {"too_few_completions": 1},
    ),
    "verdict unknown": (
        "a.jsonl",
        lines(*({"prompt": "Q?", "response_a": "a", "response_b": "b", "winner": winner} for winner in ("a", "z"))),
        {"bad_label": 1},
    ),
    "orphan in a tree": (
        "a.jsonl",
        lines(*({"message_id": name, "message_tree_id": tree, "parent_id": parent, "role": role, "text": name,
                 "rank": rank}
                for name, tree, parent, role, rank in (
                    ("q", 1, None, "prompter", None), ("a", 1, "q", "assistant", 0), ("b", 1, "q", "assistant", 1),
                    ("r", 2, None, "prompter", None), ("c", 2, "gone", "assistant", 0)))),
        {"broken_tree": 1},
    ),
    "margin NaN": ("a.jsonl", lines(OK, pair(margin=float("nan"))), {"not_finite": 1}),
    "end token in the text": ("a.jsonl", lines(OK, pair(chosen="a</s>b")), {"end_token_inside": 1}),
    "only the end token": ("a.jsonl", lines(OK, pair(chosen="</s>")), {"empty_completion": 1}),
    "system that is a number": ("a.jsonl", lines(OK, pair(system=3)), {"wrong_type": 1}),
    "history of the wrong form": ("a.jsonl", lines(OK, pair(history=["a"])), {"wrong_type": 1}),
    "byte-order mark": ("a.jsonl", b"\xef\xbb\xbf" + lines(OK, pair(chosen=False)), {"wrong_type": 1}),
}  # fmt: skip


def test_there_are_sixty() -> None:
    assert len(ERRORS) + len(REJECTIONS) >= 60


@pytest.mark.parametrize("name", ERRORS)
def test_error(tmp_path: Path, name: str) -> None:
    file, content, says = ERRORS[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        read(DataConfig(path=str(tmp_path / file)))
    assert "\n" not in str(caught.value)  # one line on the terminal
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("name", REJECTIONS)
def test_rejection(tmp_path: Path, name: str) -> None:
    file, content, reasons = REJECTIONS[name]
    (tmp_path / file).write_bytes(content)
    config = DataConfig(path=str(tmp_path / file), max_length=512)
    found = read(config)
    result = tokenize(found.records, tokenizer(), config)
    rejections = [*found.rejections, *result.rejections]
    assert Counter(rejection.reason for rejection in rejections) == reasons
    assert all(rejection.source.startswith(file) and rejection.detail for rejection in rejections)
    assert len(result.records) + len(rejections) == found.counts["rows"] - (3 if "tree" in name else 0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"path": "nowhere.jsonl"}, "no such file"),
        ({"path": "no/such/place"}, "no such file"),
        ({"path": "nobody/nothing"}, "could not be loaded from the hub"),
        ({"path": None}, "give data.path"),
        ({"schema": "prompt_pairs"}, "did you mean 'prompt_pair'"),
        ({"fields": {"prompt": "question"}}, "is not in"),
        ({"truncation": "keep_middle"}, "keep_end"),
        ({"pairs_from": "some"}, "best_worst"),
        ({"ties": "maybe"}, "split"),
        ({"eval_records": 1, "eval_fraction": 0.5}, "exclude each other"),
        ({"eval_fraction": 1.5}, "below 1"),
        ({"max_length": 0}, "at least"),
        ({"max_records": 0}, "at least"),
        ({"split": "test"}, "no splits"),
    ],
)
def test_bad_settings(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(OK))
    with pytest.raises(UserError, match=says):
        read(DataConfig(**{"path": str(tmp_path / "a.jsonl"), **settings}))


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data file"):
        read(DataConfig(path=str(tmp_path)))
