"""Weights, margins, probabilities and ties: from the columns of a file to what a loss is called on."""

from __future__ import annotations

import dataclasses
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from prefopt.config.compose import compose
from prefopt.data import DataConfig, Record, make, read, to_view, tokenize
from prefopt.data.doctor import examine
from prefopt.data.record import reversed_sides
from prefopt.data.schemas.base import FACTS
from prefopt.data.tokens import TokenRecord
from prefopt.errors import UserError
from prefopt.plugin import Data, Logps, Needs, PairLogps
from prefopt.runs.resolve import prepared_data
from prefopt.train.examples import Facts, examples_of
from tests.data import tiny

PAIR = {"prompt": "Q?", "chosen": "good", "rejected": "bad"}
JUDGED = {"prompt": "Q?", "response_a": "one", "response_b": "two"}
LABELLED = {"prompt": "Q?", "completion": "good", "label": True}
LISTED = {"prompt": "Q?", "completions": ["good", "bad"], "scores": [2.0, 1.0]}
DEMONSTRATED = {"prompt": "Q?", "completion": "good"}


def written(tmp_path: Path, *rows: dict[str, Any], **settings: Any) -> DataConfig:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(path=str(path), template="plain", **settings)


def only(tmp_path: Path, row: dict[str, Any], **settings: Any) -> Record:
    (record,) = read(written(tmp_path, row, **settings)).records
    return record


@pytest.mark.parametrize(("fact", "column"), [(fact, column) for fact, names in FACTS.items() for column in names])
def test_pairs_have_the_facts_of_their_columns(tmp_path: Path, fact: str, column: str) -> None:
    assert getattr(only(tmp_path, PAIR | {column: 0.75}), fact) == 0.75


@pytest.mark.parametrize("fact", FACTS)
def test_a_column_of_another_name_is_mapped(tmp_path: Path, fact: str) -> None:
    assert getattr(only(tmp_path, PAIR | {"mine": "0.25"}, fields={fact: "mine"}), fact) == 0.25


@pytest.mark.parametrize("row", [PAIR, JUDGED | {"winner": "A"}, LABELLED, LISTED, DEMONSTRATED])
def test_every_schema_has_weights(tmp_path: Path, row: dict[str, Any]) -> None:
    record = only(tmp_path, row | {"weight": 2})
    assert record.weight == 2.0
    (token,) = tokenize([record], tiny.tokenizer(), DataConfig(template="plain")).records
    assert token.weight == 2.0


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [("weight", -1, "bad_weight"), ("weight", "much", "wrong_type"), ("probability", 1.5, "bad_probability"),
     ("margin", True, "wrong_type")],
)  # fmt: skip
def test_impossible_facts_are_rejected(tmp_path: Path, column: str, value: Any, reason: str) -> None:
    found = read(written(tmp_path, PAIR | {column: value}, PAIR))
    assert [r.reason for r in found.rejections] == [reason]


@pytest.mark.parametrize(
    ("verdicts", "chosen", "probability"),
    [
        ({"winner": "B"}, "two", 1.0),  # one annotator
        ({"annotator1": 1, "annotator2": 2, "annotator3": 1}, "one", 2 / 3),
        ({"annotator1": 1, "annotator2": 0, "annotator3": 0, "annotator4": 2}, "one", 0.5),  # a tie is half for each
        ({"votes": ["B", "B", "A", "tie"]}, "two", 2.5 / 4),
        ({"better_response_id": 1}, "two", 1.0),
        ({"preference_strength": -2}, "one", None),  # a strength is no share
    ],
)
def test_several_annotators_are_merged_into_the_share_of_votes(
    tmp_path: Path, verdicts: dict[str, Any], chosen: str, probability: float | None
) -> None:
    record = only(tmp_path, JUDGED | verdicts)
    assert (record.completions[0], record.probability) == (chosen, probability)
    assert record.tied == (probability == 0.5)


def test_a_margin_alone_is_a_gap_of_scores_too(tmp_path: Path) -> None:
    assert only(tmp_path, PAIR | {"margin": 0.5}).scores == (0.5, 0.0)
    both = only(tmp_path, PAIR | {"margin": 0.5, "score_chosen": 4, "score_rejected": 1})
    assert (both.margin, both.scores) == (0.5, (4.0, 1.0))


def test_facts_come_through_files_and_tokens(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [PAIR | {"margin": 1.5, "probability": 0.75, "weight": 3}, PAIR | {"prompt": "R?"}]
    records = to_view(read(written(tmp_path, *rows)).records, Data.PAIRS).records
    tokens = tokenize(records, tiny.tokenizer(), DataConfig(template="plain")).records
    assert [(t.margin, t.probability, t.weight) for t in tokens] == [(1.5, 0.75, 3.0), (None, None, 1.0)]


@pytest.mark.parametrize(
    ("facts", "tied"),
    [
        ({}, False),
        ({"scores": (1.0, 1.0), "margin": 2.0}, True),  # scores first
        ({"scores": (2.0, 1.0), "probability": 0.5}, False),
        ({"margin": 0.0, "probability": 0.9}, True),  # then the margin
        ({"probability": 0.5}, True),
        ({"probability": 0.4}, False),
    ],
)
def test_what_a_tie_is(facts: dict[str, Any], tied: bool) -> None:
    record = make.pair("Q?", "good", "bad", **facts)
    assert record.tied is tied
    assert len(to_view([record], Data.PAIRS).records) == (not tied)
    assert len(to_view([record], Data.PAIRS, ties="keep").records) == 1


def test_sides_change_places_with_all_that_is_said_of_them() -> None:
    record = make.pair("Q?", "good", "bad", scores=(2.0, 1.0), margin=1.5, probability=0.75)
    other = dataclasses.replace(record, **reversed_sides(record))
    assert (other.completions, other.scores) == (("bad", "good"), (1.0, 2.0))
    assert (other.margin, other.probability) == (-1.5, 0.25)
    assert dataclasses.replace(other, **reversed_sides(other)) == record


def judged(needs: Needs, **facts: Any) -> PairLogps:
    """What a loss with these needs is called on, for one pair."""
    ids = torch.tensor([3, 4], dtype=torch.int32).numpy()
    record = TokenRecord(id="a", kind=Data.PAIRS, prompt=ids, completions=(ids, ids[:1]), **facts)
    logps = Logps(sum=torch.zeros(2), num_tokens=torch.tensor([2, 1]))
    batch = examples_of([Facts.of(record, 2)], logps, needs).logps
    assert isinstance(batch, PairLogps)
    return batch


@pytest.mark.parametrize(
    ("facts", "margin", "probability", "tied"),
    [
        ({"scores": (2.0, 0.5)}, 1.5, 1 / (1 + math.exp(-1.5)), False),
        ({"scores": (2.0, 0.5), "margin": 0.25}, 0.25, 1 / (1 + math.exp(-0.25)), False),
        ({"scores": (1.0, 1.0), "probability": 0.75}, 0.0, 0.75, True),
        ({"margin": 1e6}, 1e6, 1.0, False),
    ],
)
def test_a_loss_gets_what_it_declares(facts: dict[str, Any], margin: float, probability: float, tied: bool) -> None:
    batch = judged(Needs(data=Data.PAIRS, reference=False, margin=True, probability=True, ties=True), **facts)
    assert batch.fact("margin").tolist() == [margin]
    assert batch.fact("probability").tolist() == pytest.approx([probability])
    assert batch.fact("tied").tolist() == [tied]
    undeclared = judged(Needs(data=Data.PAIRS, reference=False), **facts)
    assert (undeclared.margin, undeclared.probability, undeclared.tied) == (None, None, None)
    with pytest.raises(ValueError, match=r"no tied: declare `Needs\(ties=True\)`"):
        undeclared.fact("tied")


@pytest.mark.parametrize("name", ["margin", "probability"])
def test_a_fact_that_a_loss_lacks_is_named(name: str) -> None:
    needs = dataclasses.replace(Needs(data=Data.PAIRS, reference=False), **{name: True})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=rf"no {name} and no scores.*data.fields={{{name}: COLUMN}}"):
        judged(needs)


@pytest.mark.parametrize(
    ("loss", "ties", "kept"),
    [("dpo", "auto", 2), ("dpo_rk", "auto", 3), ("soft_dpo", "auto", 3), ("dpo_rk", "drop", 2), ("dpo", "keep", 3)],
)
def test_ties_are_kept_for_losses_that_read_them(tmp_path: Path, loss: str, ties: str, kept: int) -> None:
    votes = {"annotator1": 1, "annotator2": 2}
    rows = [JUDGED | {"prompt": "Q?", "winner": "A"}, JUDGED | {"prompt": "R?", "winner": "B"}, JUDGED | votes]
    data = written(tmp_path, *rows)
    config = compose([f"loss={loss}", f"data.path={data.path}", "data.template=plain", f"data.ties={ties}",
                      "data.eval_records=0", "model.path=none"])  # fmt: skip
    assert len(prepared_data(config, tiny.tokenizer()).train) == kept


def test_the_doctor_lists_facts(tmp_path: Path) -> None:
    rows = [
        PAIR | {"prompt": f"Question {i}?", "weight": 1 + i % 2, "margin": i - 2, "probability": 0.5 + i / 20}
        for i in range(10)
    ]
    found = examine(written(tmp_path, *rows)).findings
    assert (found["with_weight"].figure, found["with_weight"].note) == (5, "from 2 to 2, mean 2")
    assert (found["with_margin"].figure, found["with_margin"].note) == (10, "from -2 to 7, mean 2.5")
    assert (found["with_probability"].figure, found["ties"].figure) == (10, 1)
    assert found["margin_against_label"].figure == 2
    assert "margin_against_label" not in examine(written(tmp_path, PAIR)).findings


@pytest.mark.parametrize(
    ("ended", "expected"),
    [("False", (False, False)), ("false", (False, False)), ("0", (False, False)), ("True", None), ("", None),
     ("[true, false]", (True, False)), ([True, False], (True, False)), (0, (False, False))],
)  # fmt: skip
def test_ended_in_every_spelling(tmp_path: Path, ended: Any, expected: tuple[bool, bool] | None) -> None:
    assert only(tmp_path, PAIR | {"ended": ended}).ended == expected


@pytest.mark.parametrize("ended", ["no", 2, [True], "[true", [None, True], float("nan")])
def test_ended_that_says_nothing_is_rejected(tmp_path: Path, ended: Any) -> None:
    found = read(written(tmp_path, PAIR | {"ended": ended}, PAIR))
    assert (len(found.records), ["ended" in r.detail for r in found.rejections]) == (1, [True])


@pytest.mark.parametrize("fact", FACTS)
def test_an_empty_cell_is_no_fact(tmp_path: Path, fact: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"prompt,chosen,rejected,{fact}\nQ?,good,bad,\nR?,good,bad,0.5\nS?,good,bad,nan\n")
    found = read(DataConfig(path=str(path)))
    assert [getattr(r, fact) for r in found.records] == [1.0 if fact == "weight" else None, 0.5]
    assert [r.reason for r in found.rejections] == ["not_finite"]


def test_numbers_of_columnar_files(tmp_path: Path) -> None:
    columns = {name: pa.array([value, value], "string") for name, value in PAIR.items()}
    facts = {"weight": pa.array([Decimal("1.5"), Decimal("2")], pa.decimal128(5, 1)),
             "probability": pa.array([0.25, 1], pa.float32()), "margin": pa.array([1, None], pa.int8())}  # fmt: skip
    pyarrow.parquet.write_table(pa.table(columns | facts), tmp_path / "rows.parquet")
    found = read(DataConfig(path=str(tmp_path / "rows.parquet"))).records
    assert [(r.weight, r.probability, r.margin) for r in found] == [(1.5, 0.25, 1.0), (2.0, 1.0, None)]
