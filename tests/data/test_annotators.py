"""Several annotators on rows of their own: one pair with the share of their votes, or each row a pair."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.data import DataConfig, Record, read
from prefopt.data.account import account
from prefopt.data.annotators import COLUMNS
from prefopt.data.doctor import examine
from prefopt.errors import UserError

PAIR = {"prompt": "Q?", "chosen": "one", "rejected": "two"}
SWAPPED = {"prompt": "Q?", "chosen": "two", "rejected": "one"}
JUDGED = {"prompt": "Q?", "response_a": "one", "response_b": "two"}


def reading(tmp_path: Path, *rows: dict[str, Any], **settings: Any) -> Any:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read(DataConfig(path=str(path), **settings))


def named(*rows: dict[str, Any], column: str = "annotator") -> list[dict[str, Any]]:
    return [row | {column: f"person {i}"} for i, row in enumerate(rows)]


def only(tmp_path: Path, *rows: dict[str, Any], **settings: Any) -> Record:
    (record,) = reading(tmp_path, *rows, **settings).records
    assert isinstance(record, Record)
    return record


@pytest.mark.parametrize("column", COLUMNS)
def test_rows_that_name_their_annotator_become_one_pair(tmp_path: Path, column: str) -> None:
    record = only(tmp_path, *named(PAIR, SWAPPED, SWAPPED, column=column))
    assert (record.completions, record.probability, record.weight) == (("two", "one"), 2 / 3, 1.0)


def test_the_order_of_the_rows_does_not_matter(tmp_path: Path) -> None:
    for rows in ([PAIR, SWAPPED, SWAPPED], [PAIR, SWAPPED]):
        found = {repr((r.id, r.completions, r.probability)) for order in itertools.permutations(named(*rows))
                 for r in reading(tmp_path, *order).records}  # fmt: skip
        assert len(found) == 1


@pytest.mark.parametrize(
    ("verdicts", "completions", "share"),
    [("AAB", ("one", "two"), 2 / 3), ("BBA", ("two", "one"), 2 / 3), (["A", "tie"], ("one", "two"), 0.75),
     (["tie", "tie"], ("one", "two"), 0.5), ("AB", ("one", "two"), 0.5)],
)  # fmt: skip
def test_votes_are_shares_and_a_tie_is_half_a_vote_for_each(
    tmp_path: Path, verdicts: Any, completions: tuple[str, str], share: float
) -> None:
    record = only(tmp_path, *named(*(JUDGED | {"winner": verdict} for verdict in verdicts)))
    assert (record.completions, record.probability) == (completions, share)
    assert record.scores == pytest.approx((share, 1 - share))
    assert record.tied is (share == 0.5)


def test_what_is_different_is_not_merged(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    rows = named(PAIR, PAIR | {"prompt": "R?"}, PAIR | {"rejected": "three"}, PAIR | {"tools": tools},
                 PAIR | {"ended": [True, False]}, SWAPPED | {"ended": [False, True]})  # fmt: skip
    found = reading(tmp_path, *rows).records
    assert [r.probability for r in found] == [1.0, 1.0, 1.0, 1.0, 0.5]
    assert dict(zip(found[4].completions, found[4].ended, strict=True)) == {"one": True, "two": False}


def test_weights_of_the_votes(tmp_path: Path) -> None:
    rows = named(PAIR | {"weight": 3}, SWAPPED | {"weight": 1})
    record = only(tmp_path, *rows)
    assert (record.completions, record.probability, record.weight) == (("one", "two"), 0.75, 2.0)
    record = only(tmp_path, *({**row, "weight": 0} for row in rows))
    assert (record.probability, record.weight) == (0.5, 0.0)


def test_scores_and_margins_are_means_where_they_agree_with_the_votes(tmp_path: Path) -> None:
    record = only(tmp_path, *named(PAIR | {"margin": 3}, PAIR | {"margin": 2}, SWAPPED | {"margin": 2}))
    assert (record.probability, record.margin, record.scores) == (2 / 3, 1.0, (5 / 3, 2 / 3))
    record = only(tmp_path, *named(PAIR | {"margin": 1}, PAIR | {"margin": 1}, SWAPPED | {"margin": 5}))
    assert (record.completions, record.probability, record.margin, record.scores) == (("one", "two"), 2 / 3, None, None)
    assert not record.tied


def test_one_annotator_has_one_vote_for_each_verdict(tmp_path: Path) -> None:
    rows = [row | {"worker": 7} for row in (PAIR, PAIR, SWAPPED)]
    found = reading(tmp_path, *rows)
    assert [r.probability for r in found.records] == [0.5]
    assert any("2 verdicts by 1 annotators on 1 pairs (disagreed: 1, ties: 1), 1 repeated ones left out" in line
               for line in account(found.counts))  # fmt: skip


def test_rows_without_names_are_merged_on_demand(tmp_path: Path) -> None:
    rows = [PAIR, SWAPPED, PAIR]
    assert len(reading(tmp_path, *rows).records) == 3
    assert only(tmp_path, *rows, annotators="merge").probability == 2 / 3
    assert len(reading(tmp_path, *named(*rows), annotators="separate").records) == 3
    assert "not read: annotator (3 rows)" in account(reading(tmp_path, *named(*rows), annotators="separate").counts)
    with pytest.raises(UserError, match=r"data\.annotators=mean is not one of"):
        reading(tmp_path, *rows, annotators="mean")


def test_nothing_changes_where_no_pair_has_two_verdicts(tmp_path: Path) -> None:
    rows = [PAIR, PAIR | {"prompt": "R?"}]
    plain, judged = reading(tmp_path, *rows), reading(tmp_path, *named(*rows, column="judge"))
    assert list(plain.records) == list(judged.records)
    assert account(plain.counts) == account(judged.counts) == []


def test_copies_of_a_mixture_are_not_votes(tmp_path: Path) -> None:
    reading(tmp_path, *named(PAIR, SWAPPED, SWAPPED))
    found = read(DataConfig(mixture=[{"path": str(tmp_path / "rows.jsonl"), "weight": 2.0}]))  # type: ignore[list-item]
    assert [r.probability for r in found.records] == [2 / 3, 2 / 3]
    assert (found.counts["records_made"], found.counts["copied_by_weight"]) == (1, 1)


def test_the_doctor_counts_what_was_merged(tmp_path: Path) -> None:
    rows = [*named(PAIR, SWAPPED, SWAPPED), PAIR | {"prompt": "R?"}, {"prompt": "S?"}]
    reading(tmp_path, *rows)
    report = examine(DataConfig(path=str(tmp_path / "rows.jsonl")))
    assert report.account == [
        "flow: 5 rows (1 rejected) → 2 records",
        "annotators: 3 verdicts by 3 annotators on 1 pairs (disagreed: 1, ties: 0); data.annotators=separate keeps "
        "each row a pair",
    ]
    assert report.findings["contradictory_prompts"].figure == 0


@pytest.mark.parametrize("streaming", [False, True])
def test_reading_ends_when_max_records_pairs_are_there(tmp_path: Path, streaming: bool) -> None:
    votes = [named(PAIR | {"prompt": f"{i}?"}, SWAPPED | {"prompt": f"{i}?"}) for i in range(100)]
    found = reading(tmp_path, *itertools.chain(*votes), max_records=3, streaming=streaming)
    assert [(r.prompt, r.probability) for r in found.records] == [(f"{i}?", 0.5) for i in range(3)]
    assert (found.counts["rows"], found.counts["rows_used"], found.counts["max_records"]) == (6, 6, 3)
    assert found.counts["annotators/verdicts"] == 6


def test_rows_without_an_annotator_count_towards_max_records(tmp_path: Path) -> None:
    rows = [*named(PAIR, SWAPPED), *(PAIR | {"prompt": f"{i}?"} for i in range(9)), *named(PAIR, PAIR)]
    found = reading(tmp_path, *rows, max_records=3)
    assert [r.prompt for r in found.records] == ["0?", "1?", "Q?"]
    assert found.counts["rows"] == 4
