"""Converts records to the kind that a loss is defined on, and counts what it rejects."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from prefopt.common.digest import of_json
from prefopt.data import make
from prefopt.data.record import Record, Rejection, RowError
from prefopt.data.record_table import Log, RecordTable, stored
from prefopt.errors import UserError
from prefopt.plugin import Data


@dataclass(frozen=True, kw_only=True)
class ViewResult:
    """Records of the requested kind, the rejected ones, and the counts of both."""

    records: Sequence[Record]
    rejections: list[Rejection]
    counts: dict[str, int]


def to_view(
    records: Sequence[Record],
    data: Data,
    *,
    pairs_from: str | None = None,
    ties: str = "drop",
    desirable_above: float | None = None,
    split_pairs: bool = False,
    cache_dir: str | None = None,
) -> ViewResult:
    """Convert records to the kind `data`.

    Pairs stay pairs for unpaired and demonstration losses, so that every method gets the same records in the same
    order: the trainer splits a pair into its two completions, or takes its chosen one, when it calls the loss.
    `split_pairs` makes two unpaired records of a pair, for losses that give the two sides different prompts.

    Raises:
        UserError: the records cannot be converted; the message says what to do.
    """
    kinds = records.kinds() if isinstance(records, RecordTable) else {record.kind for record in records}
    if len(kinds) > 1:
        raise UserError(f"the mixture has {' and '.join(sorted(k.value for k in kinds))}; mix records of one kind only")
    kind = kinds.pop()
    convert = _converter(kind, data, pairs_from, desirable_above)
    split_ties = _tie_rule(ties) if kind is Data.PAIRS or convert in PAIRINGS.values() else None
    split = _two_labelled if split_pairs and kind is Data.PAIRS and data is Data.UNPAIRED else None
    if convert is None and split is None and not (split_ties and _has_ties(records)):
        return ViewResult(records=records, rejections=[], counts={"records": len(records)})

    def made(log: Log) -> Iterator[Record]:
        steps = [step for step in (convert, split_ties, split) if step is not None]
        for record in records:
            yield from _apply(steps, record, log)

    if isinstance(records, RecordTable) and records.folder:
        key = of_json([records.folder.name, data.value, pairs_from, ties, desirable_above, split_pairs])
        table, log = stored("view", key, made, cache_dir)
        return ViewResult(records=table, rejections=log.rejections, counts=dict(log.counts))
    log = Log()
    listed = list(made(log))
    return ViewResult(records=listed, rejections=log.rejections, counts={**log.counts, "records": len(listed)})


Step = Callable[[Record], Iterable[Record]]


def _apply(steps: list[Step], record: Record, log: Log) -> Iterator[Record]:
    if not steps:
        yield record
        return
    try:
        made = list(steps[0](record))
    except RowError as error:
        log.reject(Rejection(source=record.source, id=record.id, reason=error.reason, detail=error.detail))
        return
    for one in made:
        yield from _apply(steps[1:], dataclasses.replace(one, source=record.source), log)


def _converter(kind: Data, data: Data, pairs_from: str | None, desirable_above: float | None) -> Step | None:
    if kind is data or (kind is Data.PAIRS and data in (Data.UNPAIRED, Data.DEMONSTRATIONS)):
        return None
    if (kind, data) == (Data.LISTS, Data.PAIRS):
        if pairs_from is None:
            raise UserError(
                "the data has lists, the loss needs pairs: choose data.pairs_from=best_worst (one pair a "
                "list), adjacent (neighbours in rank) or all (every pair)"
            )
        return PAIRINGS[pairs_from]
    if (kind, data) == (Data.LISTS, Data.UNPAIRED):
        if desirable_above is None:
            raise UserError(
                "the data has lists, the loss needs labels: choose data.desirable_above=SCORE, the score "
                "above which a completion counts as desirable (0.5 where scores are 1 for right, 0 for wrong)"
            )
        return lambda record: _labelled(record, desirable_above)
    if (kind, data) == (Data.LISTS, Data.DEMONSTRATIONS):
        return lambda record: _best(record, desirable_above)
    if (kind, data) == (Data.PAIRS, Data.LISTS):
        return _two_list
    if (kind, data) == (Data.UNPAIRED, Data.DEMONSTRATIONS):
        return _desirable_only
    raise UserError(
        f"the data has {kind.value}, which cannot become {data.value}: choose a loss for {kind.value} "
        f"(`prefopt losses` lists what each needs), or data with {data.value}"
    )


def _pair(record: Record, better: int, worse: int) -> Record:
    assert record.scores is not None
    try:
        pair = make.pair(
            record.prompt,
            record.completions[better],
            record.completions[worse],
            scores=(record.scores[better], record.scores[worse]),
            weight=record.weight,
        )
    except RowError as error:
        raise RowError(error.reason, f"completions {better} and {worse}: {error.detail}") from None
    return dataclasses.replace(pair, id=f"{record.id}:{better}>{worse}")


def _ranking(record: Record) -> list[int]:
    """Positions from best to worst; equal scores keep their order."""
    assert record.scores is not None
    return sorted(range(len(record.scores)), key=lambda i: -record.scores[i])  # type: ignore[index]


def _best_worst(record: Record) -> Iterator[Record]:
    best, *_, worst = _ranking(record)
    yield from _preferences(record, [(best, worst)])


def _adjacent(record: Record) -> Iterator[Record]:
    yield from _preferences(record, list(pairwise(_ranking(record))))


def _all(record: Record) -> Iterator[Record]:
    yield from _preferences(record, list(combinations(_ranking(record), 2)))


def _preferences(record: Record, positions: list[tuple[int, int]]) -> Iterator[Record]:
    """The pairs at these positions with unequal scores: equal scores express no preference."""
    assert record.scores is not None
    unequal = [(i, j) for i, j in positions if record.scores[i] > record.scores[j]]
    if not unequal:
        raise RowError("no_preference", "all completions to pair have the same score")
    for better, worse in unequal:
        yield _pair(record, better, worse)


PAIRINGS: dict[str | None, Step] = {"best_worst": _best_worst, "all": _all, "adjacent": _adjacent}


def _labelled(record: Record, threshold: float) -> Iterator[Record]:
    assert record.scores is not None
    for i, (completion, score) in enumerate(zip(record.completions, record.scores, strict=True)):
        single = make.unpaired(record.prompt, completion, score > threshold, weight=record.weight)
        yield dataclasses.replace(single, id=f"{record.id}:{i}")


def _best(record: Record, threshold: float | None) -> Iterator[Record]:
    assert record.scores is not None
    best = _ranking(record)[0]
    if threshold is not None and record.scores[best] <= threshold:
        raise RowError("none_desirable", f"no completion scores above data.desirable_above={threshold}")
    single = make.demonstration(record.prompt, record.completions[best], weight=record.weight)
    yield dataclasses.replace(single, id=f"{record.id}:{best}")


def _two_labelled(record: Record) -> Iterator[Record]:
    for side, completion in zip(("chosen", "rejected"), record.completions, strict=True):
        single = make.unpaired(record.prompt, completion, side == "chosen", weight=record.weight)
        yield dataclasses.replace(single, id=f"{record.id}:{side}")


def _two_list(record: Record) -> Iterator[Record]:
    yield dataclasses.replace(record, kind=Data.LISTS, scores=record.scores or (1.0, 0.0))


def _desirable_only(record: Record) -> Iterator[Record]:
    if not record.desirable:
        raise RowError("undesirable", "an undesirable completion cannot be a demonstration")
    yield dataclasses.replace(record, kind=Data.DEMONSTRATIONS, desirable=None)


def _is_tie(record: Record) -> bool:
    return record.scores is not None and record.scores[0] == record.scores[1]


def _has_ties(records: Sequence[Record]) -> bool:
    return records.ties() if isinstance(records, RecordTable) else any(_is_tie(record) for record in records)


def _tie_rule(ties: str) -> Step | None:
    def drop(record: Record) -> Iterator[Record]:
        if _is_tie(record):
            raise RowError("tie", "both sides have the same score; data.ties=split or data.ties=keep accepts such rows")
        yield record

    def split(record: Record) -> Iterator[Record]:
        if not _is_tie(record):
            yield record
            return
        for order, sides in (("a", record.completions), ("b", record.completions[::-1])):
            yield dataclasses.replace(record, id=f"{record.id}:{order}", completions=sides, weight=record.weight / 2)

    return {"drop": drop, "split": split, "keep": None}[ties]
