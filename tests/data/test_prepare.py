"""Prepared data: the cache, what is held out, and what is warned about or an error."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from prefopt.data import DataConfig, prepare
from prefopt.data.prepare import default_positions, held_out_positions
from prefopt.data.tokenize import Encoder
from prefopt.errors import UserError
from prefopt.plugin import Data
from tests.data.tiny import tokenizer


def write(path: Path, count: int, prompts: int | None = None, start: int = 0) -> str:
    path.write_text(
        "".join(
            json.dumps(
                {"prompt": f"Question {(start + i) % (prompts or 10**9)}?", "chosen": f"yes {i}", "rejected": "no"}
            )
            + "\n"
            for i in range(count)
        )
    )
    return str(path)


def test_processes_give_the_same_table(tmp_path: Path) -> None:
    path, made = write(tmp_path / "a.jsonl", 600), tokenizer()
    environment, before = os.environ, dict(os.environ)
    tables = [
        prepare(DataConfig(path=path, num_proc=n, cache_dir=str(tmp_path / f"cache{n}")), made, Data.PAIRS).train
        for n in (1, 2)
    ]
    assert tables[0].ids() == tables[1].ids()
    assert all(np.array_equal(a.prompt, b.prompt) for a, b in zip(*tables, strict=True))
    assert os.environ is environment
    assert dict(os.environ) == before


def test_second_start_tokenizes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, made = DataConfig(path=write(tmp_path / "a.jsonl", 50), eval_records=5), tokenizer()
    first = prepare(config, made, Data.PAIRS)
    monkeypatch.setattr(Encoder, "rows", None)
    second = prepare(config, tokenizer(), Data.PAIRS)
    assert first.train.ids() == second.train.ids()
    assert first.counts == second.counts
    assert len(pickle.loads(pickle.dumps(second.train))) == 45  # travels to the workers of a loader


@pytest.mark.parametrize("changed", [{"template": "chatml"}, {"max_length": 99}, {"truncation": "keep_end"}])
def test_other_settings_are_other_tokens(tmp_path: Path, changed: dict[str, Any]) -> None:
    path, made = write(tmp_path / "a.jsonl", 5), tokenizer()
    prepare(DataConfig(path=path), made, Data.PAIRS)
    prepare(DataConfig(path=path, **changed), made, Data.PAIRS)
    assert len(list((tmp_path / "prefopt-cache" / "data").glob("tokens-*"))) == 2


def test_every_method_gets_the_same_records(tmp_path: Path) -> None:
    config, made = DataConfig(path=write(tmp_path / "a.jsonl", 30), eval_fraction=0.2), tokenizer()
    ready = [prepare(config, made, data) for data in (Data.PAIRS, Data.UNPAIRED, Data.DEMONSTRATIONS)]
    assert ready[0].train.ids() == ready[1].train.ids() == ready[2].train.ids()
    for one in ready[1:]:
        for a, b in zip(ready[0].train, one.train, strict=True):
            assert a.prompt.tobytes() == b.prompt.tobytes()
            assert [ids.tobytes() for ids in a.completions] == [ids.tobytes() for ids in b.completions]


@pytest.mark.parametrize("how", [{"eval_records": 30}, {"eval_fraction": 0.3}])
def test_held_out_prompts_are_held_out_whole(tmp_path: Path, how: dict[str, Any]) -> None:
    ready = prepare(DataConfig(path=write(tmp_path / "a.jsonl", 100, prompts=40), **how), tokenizer(), Data.PAIRS)
    assert ready.eval is not None
    assert not set(ready.train.prompt_keys()) & set(ready.eval.prompt_keys())
    assert len(ready.train) + len(ready.eval) == 100
    assert 28 <= len(ready.eval) <= 30  # prompts come in twos and threes
    assert (ready.counts["train"], ready.counts["eval"]) == (len(ready.train), len(ready.eval))


@pytest.mark.parametrize(
    ("prompts", "each", "held_out"),
    [(4, 1, 0), (10, 6, 12), (30, 1, 6), (30, 2, 12), (60, 1, 12), (200, 2, 40), (1000, 1, 50), (20_000, 1, 500)],
)
def test_a_twentieth_of_the_prompts_is_held_out_by_default(prompts: int, each: int, held_out: int) -> None:
    """20 to 500 of them, at most a fifth; whole prompts, and the same ones in any order."""
    keys = np.repeat(np.arange(prompts), each)
    out = default_positions(keys)
    assert out.sum() == held_out
    assert set(keys[out]).isdisjoint(keys[~out])
    order = np.random.default_rng(0).permutation(len(keys))
    assert np.array_equal(default_positions(keys[order]), out[order])


def test_a_prompt_of_many_records_is_not_held_out_by_default() -> None:
    keys = np.concatenate([np.zeros(900, np.int64), np.arange(1, 101)])
    assert not default_positions(keys)[:900].any()
    assert default_positions(keys).sum() == 20


def test_a_run_holds_out_by_default_and_prepare_alone_does_not(tmp_path: Path) -> None:
    path, made = write(tmp_path / "a.jsonl", 50), tokenizer()
    assert prepare(DataConfig(path=path), made, Data.PAIRS).eval is None
    ready = prepare(DataConfig(path=path), made, Data.PAIRS, hold_out=True)
    assert ready.counts["held_out_by_default"] == ready.counts["eval"] == 10
    few = prepare(DataConfig(path=write(tmp_path / "b.jsonl", 4)), made, Data.PAIRS, hold_out=True)
    assert (few.eval, few.counts["held_out_by_default"]) == (None, 0)
    assert prepare(DataConfig(path=path, eval_records=0), made, Data.PAIRS, hold_out=True).eval is None
    assert prepare(DataConfig(path=path, eval_records=5), made, Data.PAIRS, hold_out=True).counts["eval"] == 5


@settings(max_examples=50)
@given(keys=st.lists(st.integers(0, 20), min_size=2, max_size=60), wanted=st.integers(1, 59))
def test_any_hold_out(keys: list[int], wanted: int) -> None:
    prompt_keys = np.array(keys, np.int64)
    if wanted >= len(keys):
        with pytest.raises(UserError, match="nothing would be left"):
            held_out_positions(prompt_keys, wanted)
        return
    out = held_out_positions(prompt_keys, wanted)
    assert out.sum() <= wanted
    assert not set(prompt_keys[out]) & set(prompt_keys[~out])


def test_the_split_does_not_depend_on_order(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.jsonl", 60))
    made, config = tokenizer(), {"eval_records": 20}
    first = prepare(DataConfig(path=str(path), **config), made, Data.PAIRS)
    path.write_text("".join(sorted(path.read_text().splitlines(keepends=True), reverse=True)))
    second = prepare(DataConfig(path=str(path), **config), made, Data.PAIRS)
    assert first.eval is not None
    assert second.eval is not None
    assert sorted(first.eval.ids()) == sorted(second.eval.ids())


def test_eval_file_and_what_leaks_into_it(tmp_path: Path) -> None:
    train, held_out = write(tmp_path / "a.jsonl", 20), write(tmp_path / "b.jsonl", 10, start=15)
    ready = prepare(DataConfig(path=train, eval_path=held_out), tokenizer(), Data.PAIRS)
    assert ready.eval is not None
    assert (len(ready.train), len(ready.eval)) == (15, 10)  # questions 15 to 19 are in both
    assert ready.counts["rejected/prompt_held_out"] == 5
    leaks = [r for r in ready.rejections if r.reason == "prompt_held_out"]
    assert sorted(r.source for r in leaks) == [f"a.jsonl:{i}" for i in range(15, 20)]
    assert all(r.id for r in leaks)


def labelled(path: Path, good: int, bad: int) -> str:
    rows = [{"prompt": f"Question {i}?", "completion": f"a{i}", "label": i < good} for i in range(good + bad)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_labels_that_are_all_the_same_are_an_error(tmp_path: Path) -> None:
    path = labelled(tmp_path / "a.jsonl", 5, 0)
    with pytest.raises(UserError, match="every completion is labelled desirable"):
        prepare(DataConfig(path=path), tokenizer(), Data.UNPAIRED)
    assert len(prepare(DataConfig(path=path), tokenizer(), Data.DEMONSTRATIONS).train) == 5


def test_warnings(tmp_path: Path) -> None:
    ready = prepare(DataConfig(path=labelled(tmp_path / "a.jsonl", 1, 9)), tokenizer(), Data.UNPAIRED)
    assert [warning.split(":")[0] for warning in ready.warnings] == [
        "10 records",
        "10.0% of the completions are desirable",
    ]
    enough = prepare(DataConfig(path=write(tmp_path / "b.jsonl", 1000)), tokenizer(), Data.PAIRS)
    assert enough.warnings == []


def test_texts_that_the_tokenizer_does_not_know_are_warned_about(tmp_path: Path) -> None:
    words = {"<unk>": 0, "<end>": 1, "yes": 2, "no": 3}
    model = Tokenizer(WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = Whitespace()
    known = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", eos_token="<end>")
    config = DataConfig(path=write(tmp_path / "a.jsonl", 10), template="plain")  # "yes 3" and "no", with their ends
    assert prepare(config, known, Data.PAIRS).warnings[1:] == [
        "20% of the tokens of completions are '<unk>': the tokenizer does not know these texts, and nothing is learned "
        "of what it does not know"
    ]
    model.model = WordLevel(words | {str(i): 4 + i for i in range(10)}, unk_token="<unk>")
    whole = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", eos_token="<end>")
    assert len(prepare(config, whole, Data.PAIRS).warnings) == 1


def test_what_the_doctor_finds_cheaply_is_warned_about_and_counted(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"Q{i}?", "chosen": f"a{i}", "rejected": "no"} for i in range(1000)]
    rows[0]["prompt"] = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    rows[1]["prompt"] = [{"role": "user", "content": "[INST] Hi [/INST]"}]
    rows[2] |= {"score_chosen": 2, "score_rejected": 8}
    rows[3] |= {"score_chosen": 8, "score_rejected": 2}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(path=str(tmp_path / "a.jsonl"), template="chatml")
    ready = prepare(config, tokenizer(), Data.PAIRS)
    assert (ready.counts["template_marks"], ready.counts["chosen_scored_lower"]) == (2, 1)
    assert [warning.split(" (")[0].split(",")[0] for warning in ready.warnings] == [
        "2 records have marks of a chat template in their texts",
        "1 pairs have the higher score on the rejected side",
    ]
    plain = prepare(DataConfig(path=config.path, template="plain"), tokenizer(), Data.PAIRS)  # marks may be meant
    assert "template_marks" not in plain.counts

    judged = [
        {"prompt": f"Q{i}?", "response_a": f"a{i}", "response_b": "no", "winner": "AB"[i % 9 > 0]} for i in range(900)
    ]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in judged))
    ready = prepare(DataConfig(path=str(tmp_path / "b.jsonl")), tokenizer(), Data.PAIRS)
    assert any(warning.startswith("the second answer wins 800 of 900") for warning in ready.warnings)


def test_nothing_left(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too_long 3"):
        prepare(DataConfig(path=write(tmp_path / "a.jsonl", 3), max_length=4), tokenizer(), Data.PAIRS)


def test_control_texts_split_pairs_whatever_was_cached_before(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Q{i}?", "chosen": "yes", "rejected": "no", "margin": i} for i in range(3)
    ]  # the first is a tie
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config, made = DataConfig(path=str(tmp_path / "a.jsonl")), tokenizer()
    pairs = prepare(config, made, Data.UNPAIRED)
    split = prepare(config, made, Data.UNPAIRED, control_text=(" good:", " bad:"))
    assert (len(pairs.train), pairs.train.kind, len(split.train), split.train.kind) == (2, Data.PAIRS, 4, Data.UNPAIRED)
    texts = [(made.decode(row.prompt), made.decode(row.completions[0][:-1]), row.desirable) for row in split.train]
    assert texts[:2] == [("Q1?", " good:yes", True), ("Q1?", " bad:no", False)]
