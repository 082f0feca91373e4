"""Tools and other arguments of a chat template: by row, for all rows, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from prefopt.data import DataConfig, Record, prepare
from prefopt.data.reader import read
from prefopt.data.tokenize import Encoder, tokenize
from prefopt.data.views import to_view
from prefopt.errors import UserError
from prefopt.plugin import Data
from tests.data.tiny import tokenizer

TEMPLATE = """
{%- if tools %}{{ '<|im_start|>tools\n' }}{% for t in tools %}{{ t.function | tojson }}{{ '\n' }}{% endfor %}
{{- '<|im_end|>\n' }}{% endif %}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"""
ADD: dict[str, Any] = {"type": "function", "function": {"name": "add", "parameters": {"a": {"type": "integer"}}}}
PRINTED = '{"name": "add", "parameters": {"a": {"type": "integer"}}}'
ROW = {"prompt": "1+2?", "chosen": "3", "rejected": "4"}


def made(template: str = TEMPLATE) -> Any:
    return tokenizer(template, eos="<|im_end|>")


def written(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(path: str, data: Data | None = None, **settings: Any) -> list[str]:
    """Prompt and completions of the first record as text."""
    record = prepare(DataConfig(path=path, **settings), made(), data).train[0]
    return [made().decode(ids) for ids in (record.prompt, *record.completions)]


@pytest.mark.parametrize(
    "tools",
    [
        {"tools": [ADD]},
        {"tools": json.dumps([ADD])},
        {"tools": [json.dumps(ADD)]},
        {"tools": [ADD["function"]]},
        {"functions": [{**ADD["function"], "parameters": json.dumps(ADD["function"]["parameters"])}]},
        {"tools": [{"type": "function", "function": json.dumps(ADD["function"]), "strict": None}]},
    ],
)
def test_tools_in_every_spelling_are_printed_by_the_template(tmp_path: Path, tools: dict[str, Any]) -> None:
    prompt, chosen, rejected = texts(written(tmp_path, {**ROW, **tools}))
    assert prompt == (f"<|im_start|>tools\n{PRINTED}\n<|im_end|>\n<|im_start|>user\n1+2?<|im_end|>\n"
                      "<|im_start|>assistant\n")  # fmt: skip
    assert (chosen, rejected) == ("3<|im_end|>", "4<|im_end|>")


def test_nulls_of_a_parquet_file_are_no_parameters(tmp_path: Path) -> None:
    other = {"type": "function", "function": {"name": "say", "parameters": {"text": {"type": "string"}}}}
    path = tmp_path / "rows.parquet"
    pa.parquet.write_table(pa.Table.from_pylist([{**ROW, "tools": [ADD, other]}]), path)
    assert PRINTED + '\n{"name": "say", "parameters": {"text": {"type": "string"}}}\n' in texts(str(path))[0]


def test_arguments_by_row_go_before_those_for_all(tmp_path: Path) -> None:
    thinking, not_thinking = "<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    off = {"enable_thinking": False}
    plain = written(tmp_path, ROW)
    assert texts(plain)[0].endswith(thinking)
    assert texts(plain, chat_template_kwargs=off)[0].endswith(not_thinking)
    by_row = written(tmp_path, {**ROW, "chat_template_kwargs": {"enable_thinking": True, "other": None}})
    assert texts(by_row, chat_template_kwargs=off)[0].endswith(thinking)
    assert texts(written(tmp_path, {**ROW, "chat_template_kwargs": json.dumps(off)}))[0].endswith(not_thinking)


def test_views_keep_the_arguments(tmp_path: Path) -> None:
    row = {"prompt": "1+2?", "completions": ["3", "4", "5"], "scores": [2, 1, 0], "tools": [ADD]}
    path = written(tmp_path, row)
    for data, options in ((Data.PAIRS, {"pairs_from": "all"}), (Data.UNPAIRED, {"desirable_above": 1.0}),
                          (Data.DEMONSTRATIONS, {})):  # fmt: skip
        assert PRINTED in texts(path, data, **options)[0]
    records = to_view(read(DataConfig(path=path)).records, Data.PAIRS, pairs_from="all").records
    assert [dict(record.arguments) for record in records] == [{"tools": [ADD]}] * 3


def test_arguments_are_part_of_what_a_record_and_the_cache_are_known_by(tmp_path: Path) -> None:
    ids = {read(DataConfig(path=written(tmp_path, {**ROW, **more}))).records[0].id
           for more in ({}, {"tools": [ADD]}, {"chat_template_kwargs": {"enable_thinking": False}})}  # fmt: skip
    assert len(ids) == 3
    keys = {Encoder(made(), DataConfig(path="x", chat_template_kwargs=kwargs)).key()
            for kwargs in ({}, {"enable_thinking": False}, {"enable_thinking": True})}  # fmt: skip
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("more", "reason", "word"),
    [
        ({"tools": [{"description": "x"}]}, "bad_tool", "no function with a name"),
        ({"tools": "[{"}, "wrong_type", "JSON"),
        ({"tools": [3]}, "bad_tool", "object"),
        ({"chat_template_kwargs": [1]}, "wrong_type", "object"),
        ({"chat_template_kwargs": {"add_generation_prompt": True}}, "bad_template_argument", "add_generation_prompt"),
        ({"chat_template_kwargs": {"colour": 1}}, "unread_input", "data.ignore=[chat_template_kwargs]"),
    ],
)
def test_what_cannot_be_used_is_a_counted_rejection(tmp_path: Path, more: dict[str, Any], reason: str,
                                                    word: str) -> None:  # fmt: skip
    ready = prepare(DataConfig(path=written(tmp_path, ROW, {**ROW, **more})), made(), Data.PAIRS)
    assert [(r.reason, word in r.detail) for r in ready.rejections] == [(reason, True)]


def test_tools_that_a_template_does_not_print() -> None:
    record = Record(id="x", kind=Data.DEMONSTRATIONS, prompt="Hi", completions=("Ho",), arguments={"tools": [ADD]})
    for template, reason in (("{# tools #}" + TEMPLATE.replace("{%- if tools %}", "{%- if tools == 3 %}"),
                              "turn_not_printed"), (TEMPLATE.replace("tools", "toys"), "unread_input"),
                             (None, "unread_input")):  # fmt: skip
        found = tokenize([record], made(template), DataConfig(path="x"))  # type: ignore[arg-type]
        assert [r.reason for r in found.rejections] == [reason]


def test_an_argument_for_all_rows_must_be_one_of_the_template() -> None:
    for template, name in (("auto", "colour"), ("plain", "enable_thinking")):
        with pytest.raises(UserError, match=rf"data\.chat_template_kwargs has '{name}'"):
            Encoder(made(), DataConfig(path="x", template=template, chat_template_kwargs={name: 1}))
    with pytest.raises(UserError, match="tokenize"):
        DataConfig(path="x", chat_template_kwargs={"tokenize": True}).check()


CALL_TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}"
    "<{{ c.function.name }} {{ c.function.arguments | tojson }}>{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.mark.parametrize(
    "call",
    [
        {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}},
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
        {"name": "add", "arguments": {"a": 1}},
        {"id": "c1", "type": "function", "name": "add", "arguments": '{"a": 1}'},
    ],
)
def test_calls_in_every_spelling_are_given_to_the_template_in_one(tmp_path: Path, call: dict[str, Any]) -> None:
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    row = {"prompt": [{"role": "user", "content": "1?"}], "chosen": [turn], "rejected": "no"}
    (record,) = prepare(DataConfig(path=written(tmp_path, row), eval_records=0), made(CALL_TEMPLATE), None).train
    assert made().decode(record.completions[0]) == '<add {"a": 1}><|im_end|>'


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"type": "function", "function": {"arguments": {}}}, "no function with a name"),
        ({"arguments": {"a": 1}}, "no function with a name"),
        ({"type": "function", "function": "add"}, "no function with a name"),
        ({"name": "add", "arguments": [1]}, "needs an object of arguments"),
        ({"name": "add", "arguments": "{"}, "are not JSON"),
    ],
)
def test_calls_that_are_none_are_rejected(tmp_path: Path, call: dict[str, Any], message: str) -> None:
    turn = {"role": "assistant", "content": "", "tool_calls": [call]}
    (rejection,) = read(DataConfig(path=written(tmp_path, {**ROW, "chosen": [turn]}, ROW))).rejections
    assert (rejection.reason, message in rejection.detail) == ("bad_tool_call", True)


@pytest.mark.parametrize("arguments", [None, "", " ", {}])
def test_a_call_may_have_no_arguments(tmp_path: Path, arguments: Any) -> None:
    turn = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "now", "arguments": arguments}}]}
    (record,) = read(DataConfig(path=written(tmp_path, {**ROW, "chosen": [turn]}))).records
    said = record.completions[0]
    assert not isinstance(said, str)
    assert said[0]["tool_calls"][0]["function"] == {"name": "now", "arguments": {}}
