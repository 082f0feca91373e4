"""Values in Hydra's grammar: written so that they are read back, and names of files quoted where they must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from prefopt.config.compose import compose
from prefopt.config.grammar import literal, value_of
from prefopt.errors import UserError

NAMES = ["données.jsonl", "p/数据/model", "p/a=b/model", "it's.jsonl", "a{b}.jsonl", "{a}.jsonl", "a b/c.jsonl",
         'say "x".jsonl', "(1).jsonl", "back\\slash.jsonl", "end\\", "\\'", "\\\\'x", "a,b.jsonl", "[1].jsonl", "#1",
         "a!b", "null", "true", "1e-3", "007", "${x}.jsonl", "~/x", "Ω", "a:b", "", " ", "a;b&c", "x\ty"]  # fmt: skip


def read(word: str) -> Any:
    return OverridesParser.create().parse_override(word).value()


@pytest.mark.parametrize("name", [n for n in NAMES if "$" not in n])
def test_a_value_is_read_back(name: str) -> None:
    assert read(f"k={value_of(name)}") == name
    assert read(f"k={value_of([name, [name]])}") == [name, [name]]
    assert read(f"k={value_of({'a': name})}") == {"a": name}


def test_a_value_is_no_interpolation() -> None:
    assert compose([f"data.path={value_of('${x}.jsonl')}"]).data.path == "${x}.jsonl"


def test_keys_of_tables_are_escaped() -> None:
    table = {"[[B]]": "second", "a b": 1, "x:y": [True, None]}
    assert read(f"k={value_of(table)}") == table


@pytest.mark.parametrize("name", ["données.jsonl", "p/数据/model", "p/a=b/model", "it's", "a{b}", "{a}", "a!b", "x;y"])
def test_names_that_the_grammar_cannot_parse_are_taken_literally(name: str) -> None:
    given = [f"model.path={name}", f"data.path={name}", f"output_dir={name}", f"tracking.run_name={name}"]
    config = compose(given)
    assert (config.model.path, config.data.path, config.tracking.run_name) == (name, name, name)
    assert config.output_dir == Path(name)


def test_what_the_grammar_reads_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["-m", "data.path=a,b", "model.path='x y'", "output_dir=runs/${loss}", "data.fields={prompt: q}", "~loss",
             "~data.x=é", "model.reference=null", "loss=dpo,ipo", "data.world={a: b}", "-cd", "p/a=b"]  # fmt: skip
    assert literal(words) == words
    Path("a,b").touch()
    Path("[x]").touch()
    assert literal(["data.path=a,b", "data.path=[x]"]) == ["data.path='a,b'", "data.path='[x]'"]


def test_texts_in_lists_and_tables() -> None:
    data = compose(["data.fields={prompt: 问题, chosen: a=b}", "data.ignore=[数据, x y, b!]", "data.path=f"]).data
    assert data.fields == {"prompt": "问题", "chosen": "a=b"}
    assert data.ignore == ["数据", "x y", "b!"]
    mixture = compose(["data.mixture=[{path: données.jsonl, weight: 2}, {path: 'b'}]"]).data.mixture
    assert [(source.path, source.weight) for source in mixture] == [("données.jsonl", 2.0), ("b", 1.0)]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("loss.beta=é", "loss.beta is a number, not 'é'"),
        ("loss=dpo;", "unknown loss 'dpo;'; did you mean 'dpo'?"),
        ("data=数据", "unknown data '数据'"),
        ("seed=a=b", "seed=a=b must be a whole number"),
        ("data.verdicts={A>B: first}", "data.verdicts={A>B: first} is not a list or table: put texts in quotes"),
        ("data.ignore=[a", "data.ignore=[a is not a list or table"),
        ("nonsense", "'nonsense' is not a setting: write KEY=VALUE"),
        ("model.path=a,b", "several values are several runs (-m), or a list: model.path=[A,B]"),
    ],
)
def test_what_cannot_be_read_is_said_in_our_words(word: str, message: str) -> None:
    with pytest.raises(UserError) as found:
        compose([word])
    assert message in str(found.value)
    assert "hydra" not in str(found.value).lower()


def test_a_sweep_over_such_names_stays_one() -> None:
    assert literal(["-m", "data.path=é,ü"]) == ["-m", "data.path='é','ü'"]


def test_an_experiment_file_may_have_any_name(tmp_path: Path) -> None:
    for name in ("données.yaml", "a=b.yaml", "it's.yaml"):
        (tmp_path / name).write_text("loss:\n  beta: 0.3\n")
        assert compose([f"experiment={tmp_path / name}"]).loss.beta == 0.3  # type: ignore[attr-defined]
