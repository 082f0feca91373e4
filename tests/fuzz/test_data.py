"""Hostile data: rows, files of every format, compressed ones, bombs, folders, caches, chat templates."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefopt.data import DataConfig, read, tokenize
from prefopt.data import rows as data_rows
from prefopt.data.annotators import Annotators
from prefopt.data.data_config import Source
from prefopt.data.record import Record, RowError
from prefopt.data.schemas import SCHEMAS, recognise, rename
from prefopt.data.schemas.base import ENDED_DEFAULT
from prefopt.data.templates import renderer
from prefopt.errors import UserError
from tests.data.tiny import tokenizer
from tests.fuzz.hostile import altered, altered_file, altered_json, as_json, attempt, cases, values, words

TOKENIZER = tokenizer()
TEMPLATED = tokenizer()  # its template changes from case to case
TURNS = [{"role": "user", "content": "Question?"}, {"role": "assistant", "content": "Answer."}]
OTHER = [TURNS[0], {"role": "assistant", "content": "No."}]
ANSWERS = [{"text": "A.", "rank": 0, "role": "assistant"}, {"text": "B.", "rank": 1, "role": "assistant"}]
ROWS: list[dict[str, Any]] = [
    {"prompt": "Q?", "chosen": "A.", "rejected": "B.", "score_chosen": 1, "score_rejected": 0, "system": "S."},
    {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": OTHER[1:]},
    {"chosen": TURNS, "rejected": OTHER},
    {"chosen": "\n\nHuman: Q?\n\nAssistant: A.", "rejected": "\n\nHuman: Q?\n\nAssistant: B."},
    {"prompt": "Q?", "completion": "A.", "label": True},
    {"messages": TURNS, "label": 0},
    {"instruction": "Do.", "input": "It.", "output": "Done.", "history": [["a", "b"]]},
    {"instruction": "Q?", "completions": [{"response": "A.", "overall_score": 1}, {"response": "B.", "score": 2}]},
    {"prompt": "Q?", "completions": ["A.", "B."], "scores": [1, 0]},
    {"prompt": "Q?", "answers": [{"answer": "A.", "rank": 1}, {"answer": "B.", "rank": 2}]},
    {"prompt": "Q?", "response_a": "A.", "response_b": "B.", "winner": "a", "judge_1": 2},
    {"conversation_a": TURNS, "conversation_b": OTHER, "winner": "model_a"},
    {"history": "P", "human_ref_A": "A.", "human_ref_B": "B.", "labels": 1, "score_A": 3, "score_B": 2},
    {"info": {"post": "P"}, "summaries": [{"text": "A."}, {"text": "B."}], "choice": 0},
    {"question": {"full_text": "Q?"}, "answer_0": "A.", "answer_1": "B.", "score_0": 1.0, "score_1": 0.0},
    {"message_tree_id": "t", "prompt": {"text": "Q?", "role": "prompter", "replies": ANSWERS}},
    {"message_id": "m", "message_tree_id": "t", "parent_id": None, "text": "Q?", "role": "prompter", "rank": None},
    {"conversations": [{"from": "human", "value": "Q?"}], "chosen": TURNS[1], "rejected": OTHER[1]},
    {"question": "Q?", "m1": {"solution": "A.", "is_correct": True}, "m2": {"solution": "B.", "is_correct": False}},
]


def of_rows(rows: list[dict[str, Any]]) -> None:
    """What `read` does with rows, without a disk: each is a record or has a reason."""
    schema = recognise(rows, "rows")
    named = ((f"rows:{i}", rename(row, {})) for i, row in enumerate(rows))
    for _, row in named if schema.gather is None else schema.gather(named):
        made_of(schema.name, row)


def made_of(name: str, row: dict[str, Any]) -> None:
    from prefopt.data.reader import _made

    try:
        found = _made(SCHEMAS[name], {**row, ENDED_DEFAULT: True}, Annotators("auto"), Counter())
    except RowError as error:
        found = [error]
    for one in found:
        assert isinstance(one, Record) or (one.reason and one.detail)


@cases(0.2)
@given(st.sampled_from(ROWS).flatmap(lambda row: altered_json(row, values)), st.sampled_from(ROWS))
def test_rows(row: Any, other: dict[str, Any]) -> None:
    """One hostile row among others."""
    if isinstance(row, dict):
        attempt(lambda: of_rows([{str(k): v for k, v in row.items()}, other]))


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows)


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    sink = io.StringIO()
    writer = csv.DictWriter(sink, fieldnames=list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]], compression: str) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table(rows), sink, compression=compression)
    return sink.getvalue()


def as_arrow(rows: list[dict[str, Any]], new: Callable[..., Any], compression: str | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with new(sink, table(rows).schema, options=options) as writer:
        writer.write_table(table(rows))
    return bytes(sink.getvalue())


PAIRS = [{"prompt": f"Question {i}?", "chosen": "Yes.", "rejected": "No."} for i in range(5)]
CHATS = [{"chosen": TURNS, "rejected": OTHER, "n": i} for i in range(3)]
LINES = b"\n".join(map(as_json, PAIRS))
FILES: dict[str, bytes] = {
    "a.jsonl": LINES,
    "bom.jsonl": b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n"),
    "wide.jsonl": LINES.decode().encode("utf-16"),
    "a.json": as_json({"data": PAIRS}),
    "columns.json": as_json({"prompt": ["Q?"], "chosen": ["A."], "rejected": ["B."]}),
    "a.csv": as_csv(PAIRS),
    "a.tsv": as_csv(PAIRS, "\t"),
    "snappy.parquet": as_parquet(CHATS, "snappy"),
    "zstd.parquet": as_parquet(PAIRS, "zstd"),
    "file.arrow": as_arrow(CHATS, pa.ipc.new_file),
    "stream.arrow": as_arrow(PAIRS, pa.ipc.new_stream),
    "lz4.feather": as_arrow(CHATS, pa.ipc.new_file, "lz4"),
    "a.jsonl.gz": gzip.compress(LINES),
    "a.csv.bz2": bz2.compress(as_csv(PAIRS)),
    "a.json.zst": pa.compress(as_json(PAIRS), "zstd", asbytes=True),
    "a.parquet.gz": gzip.compress(as_parquet(PAIRS, "none")),
}


def read_rows(path: Path) -> None:
    """The rows of a file, up to a thousand, as `read` takes them."""
    rows = [row for _, row in islice(data_rows.open_source(Source(path=str(path))).rows, 1000)]
    of_rows([row for row in rows if isinstance(row, dict)])


@pytest.mark.parametrize("name", FILES)
def test_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / name

    @cases(0.02)
    @given(altered_file(FILES[name]))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        attempt(lambda: read_rows(path))

    check()


def whole_way(path: Path, cache: Path) -> None:
    """Read, tokenized under a chat template, and looked at."""
    config = DataConfig(path=str(path), cache_dir=str(cache), max_length=64)
    found = read(config)
    made = tokenize(found.records, TOKENIZER, config)
    assert all(r.detail for r in (*found.rejections, *made.rejections))
    for record in islice(made.records, 20):
        assert record.prompt.size
        assert min(c.size for c in record.completions)


def test_files_all_the_way(tmp_path: Path) -> None:
    path, cache = tmp_path / "a.jsonl", tmp_path / "cache"

    @cases(0.004)
    @given(st.lists(st.sampled_from(ROWS[:9]).flatmap(lambda row: altered_json(row)), min_size=1, max_size=4))
    def check(rows: list[Any]) -> None:
        path.write_bytes(b"\n".join(map(as_json, [PAIRS[0], *rows])))
        attempt(lambda: whole_way(path, cache))
        shutil.rmtree(cache, ignore_errors=True)

    check()


def test_file_names(tmp_path: Path) -> None:
    @cases(0.01)
    @given(words)
    def check(name: str) -> None:
        attempt(lambda: read_rows(tmp_path / name))
        attempt(lambda: read_rows(Path(f"{name}.jsonl")))

    check()


def test_saved_sets(tmp_path: Path) -> None:
    """Folders as `datasets` saves them: their lists name files of that folder, or nothing is read."""
    folder, secret = tmp_path / "set", tmp_path / "secret.jsonl"
    (folder / "train").mkdir(parents=True)
    secret.write_bytes(LINES)
    (folder / "train" / "data.arrow").write_bytes(FILES["stream.arrow"])
    splits = {"splits": ["train"]}
    state = {"_data_files": [{"filename": "data.arrow"}]}
    names = st.one_of(words, st.sampled_from(["../../secret.jsonl", str(secret), "data.arrow", "../train/data.arrow"]))

    @cases(0.02)
    @given(altered_json(splits, names).map(as_json), altered_json(state, names).map(as_json))
    def check(dict_file: bytes, state_file: bytes) -> None:
        (folder / "dataset_dict.json").write_bytes(dict_file)
        (folder / "train" / "state.json").write_bytes(state_file)
        attempt(lambda: read_rows(folder))

    check()
    for name in ("../../secret.jsonl", str(secret)):
        (folder / "dataset_dict.json").write_bytes(as_json(splits))
        (folder / "train" / "state.json").write_bytes(as_json({"_data_files": [{"filename": name}]}))
        with pytest.raises(UserError, match="not in it"):
            read_rows(folder)


BIG = 16 * 2**20


def one_column(column: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.schema([("prompt", column.type)])) as writer:
        writer.write_table(pa.table({"prompt": column}))
    return bytes(sink.getvalue())


def as_dictionary() -> Any:
    """A megabyte said sixteen times, kept once."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * 16, pa.int32()), pa.array(["a" * 2**20]))


def dictionary_parquet() -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"prompt": as_dictionary().dictionary_decode()}), sink)
    return sink.getvalue()


BOMBS: dict[str, Callable[[], bytes]] = {
    "a.jsonl.gz": lambda: gzip.compress(b'{"prompt": "' + b"a" * BIG, 1),
    "a.json.gz": lambda: gzip.compress(b"[" + b" " * BIG, 1),
    "a.csv.bz2": lambda: bz2.compress(b'prompt\n"' + b"a" * BIG, 1),
    "a.jsonl.zst": lambda: pa.compress(b" " * BIG, "zstd", asbytes=True),
    "a.parquet.gz": lambda: gzip.compress(b"PAR1" + b"\0" * BIG, 1),
    "a.arrow.zst": lambda: pa.compress(one_column(pa.array(["a" * BIG])), "zstd", asbytes=True),
    "dictionary.arrow": lambda: one_column(as_dictionary()),
    "dictionary.parquet": dictionary_parquet,
    "rows.arrow": lambda: one_column(pa.nulls(10**9)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What unpacks to far more than text ever does is refused, and named."""
    monkeypatch.setattr(data_rows, "SLACK_BYTES", 2**20)
    monkeypatch.setattr(data_rows, "MOST_EXPANSION", 4)
    (tmp_path / name).write_bytes(BOMBS[name]())
    with pytest.raises(UserError, match=r"unpacks to more than 4 times|more rows than fit"):
        read_rows(tmp_path / name)


def test_what_is_no_bomb(tmp_path: Path) -> None:
    """A set of one row, repeated, shrinks a thousandfold; it is small, and read."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress((LINES + b"\n") * 20_000))
    assert sum(1 for _ in data_rows.open_source(Source(path=str(path))).rows) == 100_000


def test_caches(tmp_path: Path) -> None:
    """Prepared data that was altered in the cache: an error that names the folder to delete, or data."""
    source, cache = tmp_path / "a.jsonl", tmp_path / "cache"
    source.write_bytes(LINES)
    whole_way(source, cache)
    kept = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    assert {path.name for path in kept} == {"meta.json", "records.arrow", "tokens.arrow"}

    @cases(0.02)
    @given(st.sampled_from(sorted(kept)).flatmap(lambda p: st.tuples(st.just(p), altered_file(kept[p]))))
    def check(change: tuple[Path, bytes]) -> None:
        path, content = change
        path.unlink()  # what is mapped stays as it is
        path.write_bytes(content)
        attempt(lambda: whole_way(source, cache))
        path.write_bytes(kept[path])

    check()


PARTS = st.sampled_from([
    "{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{{ m['role'] }}", "{% if add_generation_prompt %}",
    "{% endif %}", "<eos>", "{{ messages.__class__.__mro__[1].__subclasses__() }}", "{{ raise_exception('no') }}",
    "{{ self.__init__.__globals__ }}", "{{ range(99999999) | list }}", "{{ 1 / 0 }}", "{{ '%c' % 1114112 }}",
    "{% set x = messages.append(1) %}", "{{ strftime_now('%Y') }}", "{% include '/etc/passwd' %}", "{% import 'os' %}",
    "{{ messages[9].content }}", "{{ x.y.z }}", "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "{{ '\\ud800' }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}", "{{ messages | tojson }}", "{%", "}}",
])  # fmt: skip


def rendered(template: str) -> None:
    """A dialogue under a template, or the reason against it."""
    TEMPLATED.chat_template = template
    with suppress(RowError):
        found = renderer(TEMPLATED, "auto").render(({"role": "user", "content": "Q?"},), ("A.",))
        assert not {"root:", "uid="} & set(found.prompt.split())


@cases(0.02)
@given(st.lists(PARTS, max_size=6).map("".join))
def test_chat_templates(source: str) -> None:
    """A template that comes with a model runs in a sandbox; what it cannot do there rejects the row."""
    attempt(lambda: rendered(source))


@cases(0.02)
@given(altered(b"{% for m in messages %}{{ m.content }}{% endfor %}"))
def test_template_files(content: bytes) -> None:
    attempt(lambda: rendered(content.decode("utf-8", "replace")))


def test_replies_that_are_no_list() -> None:
    """A tree whose replies are a number was a TypeError."""
    found = SCHEMAS["nested_tree"].read(
        {"message_tree_id": "t", "prompt": {"text": "Q?", "role": "user", "replies": 5}}
    )
    assert [(type(one), one.reason) for one in found if isinstance(one, RowError)] == [(RowError, "wrong_type")]


@pytest.mark.parametrize("value", [10**400, -(10**400), 1e400, 1e308, -2e38])
def test_numbers_that_float32_does_not_hold(value: Any, tmp_path: Path) -> None:
    """A score of 401 digits was an OverflowError, and a weight of 1e308 infinite in training."""
    path = tmp_path / "a.jsonl"
    good = {"prompt": "Q?", "completions": ["a", "b"], "scores": [1, 0]}
    path.write_text(f"{json.dumps(good)}\n{json.dumps({**good, 'scores': [value, 0]})}\n")
    found = read(DataConfig(path=str(path), cache_dir=str(tmp_path / "cache")))
    assert [r.reason for r in found.rejections] == ["not_finite"]
