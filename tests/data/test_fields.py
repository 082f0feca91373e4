"""Tool calls of turns: arguments are decoded once, and only those that a call gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from prefopt.data import DataConfig, read
from prefopt.data.fields import message
from prefopt.data.record import RowError

USER = {"role": "user", "content": "What is the weather?"}


def turn(*calls: Any, key: str = "tool_calls") -> dict[str, Any]:
    return {"role": "assistant", "content": None, key: list(calls)}


def called(arguments: Any, name: str = "weather") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("given", "arguments"),
    [
        ('{"a": 2, "b": null}', {"a": 2, "b": None}),
        ({"a": 2, "b": None}, {"a": 2, "b": None}),
        ('{"a": "{\\"b\\": 1}"}', {"a": '{"b": 1}'}),  # decoded once
        ("{}", {}),
        ("", {}),
        ({}, {}),
    ],
)
def test_arguments_are_decoded_once(given: Any, arguments: Any) -> None:
    assert message(turn(called(given)), "x")["tool_calls"] == [called(arguments)]
    bare = {"name": "weather", "arguments": given}
    expected = [called(arguments)]
    assert message(turn(bare), "x")["tool_calls"] == expected
    assert message({**turn(), "tool_calls": None, "function_call": bare}, "x")["tool_calls"] == expected
    assert message({**turn(), "tool_calls": json.dumps([bare])}, "x")["tool_calls"] == expected


@pytest.mark.parametrize(
    "calls", ["add(1, 2)", ["add"], [called('{"a": ')], [called("[1]")], [called('"{}"')], [called(3)]]
)
def test_calls_that_are_not_objects_are_rejected(calls: Any) -> None:
    with pytest.raises(RowError) as caught:
        message({**turn(), "tool_calls": calls}, "x")
    assert caught.value.reason == "bad_tool_call"


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_columnar_files_do_not_add_the_parameters_of_other_functions(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"prompt": [USER], "chosen": [turn({"id": None, **called({"city": "Rome"})})], "rejected": "No."},
        {"prompt": [USER], "chosen": [turn(called({"a": 0, "b": {"c": [1]}}, "add"))], "rejected": "No."},
    ]
    table = pa.Table.from_pylist([{**row, "rejected": [{"role": "assistant", "content": "No."}]} for row in rows])
    path = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    jsonl = tmp_path / "rows.jsonl"
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, expected = (read(DataConfig(path=str(one))).records for one in (path, jsonl))
    assert [record.completions for record in found] == [record.completions for record in expected]
    assert [record.id for record in found] == [record.id for record in expected]
    assert found[0].completions[0][0]["tool_calls"] == [called({"city": "Rome"})]  # type: ignore[index]
