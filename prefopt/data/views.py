"""Converts records to the kind that a loss is defined on, and counts what it rejects."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, pairwise

from prefopt.common.digest import of_json
from prefopt.data import make
from prefopt.data.record import Message, Record, Rejection, RowError, Text, is_trained, reversed_sides
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
    data: Data | None,
    *,
    pairs_from: str | None = None,
    ties: str = "drop",
    desirable_above: float | None = None,
    split_pairs: bool = False,
    train_on: str | None = None,
    cache_dir: str | None = None,
) -> ViewResult:
    """Convert records to the kind `data`; None leaves them as they are.

    Pairs stay pairs for unpaired and demonstration losses, so that every method gets the same records in the same
    order: the trainer splits a pair into its two completions, or takes its chosen one, when it calls the loss.
    `train_on` chooses the turns of the assistant that are trained, see docs/data.md.
    `split_pairs` makes two unpaired records of a pair, for losses that give the two sides different prompts.

    Raises:
        UserError: the records cannot be converted; the message says what to do.
    """
    kinds = records.kinds() if isinstance(records, RecordTable) else {record.kind for record in records}
    if len(kinds) > 1:
        raise UserError(f"the mixture has {' and '.join(sorted(k.value for k in kinds))}; mix records of one kind only")
    kind = kinds.pop()
    data = data or kind
    convert = _converter(kind, data, pairs_from, desirable_above)
    split_ties = _tie_rule(ties) if kind is Data.PAIRS else None
    split = _two_labelled if split_pairs and kind is Data.PAIRS and data is Data.UNPAIRED else None
    turns = _turns_to_train(train_on)
    if convert is None and split is None and turns is None and not (split_ties and _has_ties(records)):
        return ViewResult(records=records, rejections=[], counts={"records": len(records)})

    def made(log: Log) -> Iterator[Record]:
        steps = [step for step in (convert, split_ties, split, turns) if step is not None]
        for record in records:
            yield from _apply(steps, record, log)

    if isinstance(records, RecordTable) and records.folder:
        key = of_json([records.folder.name, data.value, pairs_from, ties, desirable_above, split_pairs, train_on])
        table, log = stored("view", key, made, cache_dir)
        return ViewResult(records=table, rejections=log.rejections, counts=dict(log.counts))
    log = Log()
    listed = list(made(log))
    return ViewResult(records=listed, rejections=log.rejections, counts={**log.counts, "records": len(listed)})


Step = Callable[[Record, Log], Iterable[Record]]


def _apply(steps: list[Step], record: Record, log: Log) -> Iterator[Record]:
    if not steps:
        yield record
        return
    try:
        made = list(steps[0](record, log))
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
        return lambda record, log: _preferences(record, pairs_from, log)
    if (kind, data) == (Data.LISTS, Data.UNPAIRED):
        if desirable_above is None:
            raise UserError(
                "the data has lists, the loss needs labels: choose data.desirable_above=SCORE, the score "
                "above which a completion counts as desirable (0.5 where scores are 1 for right, 0 for wrong)"
            )
        return lambda record, log: _labelled(record, desirable_above)
    if (kind, data) == (Data.LISTS, Data.DEMONSTRATIONS):
        return lambda record, log: _best(record, desirable_above, log)
    if (kind, data) == (Data.PAIRS, Data.LISTS):
        return _two_list
    if (kind, data) == (Data.UNPAIRED, Data.DEMONSTRATIONS):
        return _desirable_only
    if kind is Data.PROMPTS:
        raise UserError(
            "the data has prompts alone, and this loss learns from completions: add source=rollouts and a reward, and "
            f"the policy writes them; or give data with {data.value}"
        )
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
    return _of(record, pair, f"{better}>{worse}", better, worse)


def _of(record: Record, part: Record, name: str, *places: int) -> Record:
    """A record made of the completions of another one at these places."""
    ended = None if record.ended is None else tuple(record.ended[i] for i in places)
    return dataclasses.replace(part, id=f"{record.id}:{name}", arguments=record.arguments, ended=ended)


def _ranking(record: Record) -> list[int]:
    """Positions from best to worst; equal scores keep their order."""
    assert record.scores is not None
    return sorted(range(len(record.scores)), key=lambda i: -record.scores[i])  # type: ignore[index]


Places = list[tuple[int, int]]
PAIRINGS: dict[str, Callable[[list[int]], Places]] = {  # positions from best to worst -> (better, worse)
    "best_worst": lambda ranking: [(ranking[0], ranking[-1])],
    "adjacent": lambda ranking: list(pairwise(ranking)),
    "all": lambda ranking: list(combinations(ranking, 2)),
}


def _preferences(record: Record, pairing: str, log: Log) -> Iterator[Record]:
    """The pairs with unequal scores, because equal ones express no preference; what makes none is counted or listed."""
    unequal, tied = _places(record, pairing)
    if not unequal:
        raise RowError("no_preference", "all completions to pair have the same score")
    made, errors = {}, []
    for better, worse in unequal:
        try:
            made[better, worse] = _pair(record, better, worse)
        except RowError as error:
            errors.append(error)
    if not made:
        raise errors[0]
    for one in errors:
        log.reject(Rejection(source=record.source, id=record.id, reason=one.reason, detail=one.detail, rows=0))
    for name, count in (("pairs_tied", tied), ("completions_unused", len(record.completions) - len(set(chain(*made))))):
        if count:
            log.counts[name] += count
    yield from made.values()


def _places(record: Record, pairing: str) -> tuple[Places, int]:
    """The positions of the pairs of a list with unequal scores, and the number of pairs with equal ones."""
    assert record.scores is not None
    places = PAIRINGS[pairing](_ranking(record))
    unequal = [(i, j) for i, j in places if record.scores[i] > record.scores[j]]
    return unequal, len(places) - len(unequal)


def pair_counts(records: Iterable[Record]) -> dict[str, Counter[str]]:
    """For each value of `data.pairs_from` what it makes of lists: pairs, pairs_tied, and lists that make none."""
    counts: dict[str, Counter[str]] = {pairing: Counter() for pairing in PAIRINGS}
    for record in records:
        for pairing, found in counts.items():
            unequal, tied = _places(record, pairing)
            pairs = sum(record.completions[i] != record.completions[j] for i, j in unequal)
            found.update({"pairs": pairs, "pairs_tied": tied if pairs else 0, "no_preference": not pairs})
    return counts


def _labelled(record: Record, threshold: float) -> Iterator[Record]:
    assert record.scores is not None
    for i, (completion, score) in enumerate(zip(record.completions, record.scores, strict=True)):
        single = make.unpaired(record.prompt, completion, score > threshold, weight=record.weight)
        yield _of(record, single, str(i), i)


def _best(record: Record, threshold: float | None, log: Log) -> Iterator[Record]:
    assert record.scores is not None
    best = _ranking(record)[0]
    if threshold is not None and record.scores[best] <= threshold:
        raise RowError("none_desirable", f"no completion scores above data.desirable_above={threshold}")
    log.counts["completions_unused"] += len(record.completions) - 1
    single = make.demonstration(record.prompt, record.completions[best], weight=record.weight)
    yield _of(record, single, str(best), best)


def _two_labelled(record: Record, log: Log) -> Iterator[Record]:
    for i, (side, completion) in enumerate(zip(("chosen", "rejected"), record.completions, strict=True)):
        single = make.unpaired(record.prompt, completion, side == "chosen", weight=record.weight)
        yield _of(record, single, side, i)


def _two_list(record: Record, log: Log) -> Iterator[Record]:
    yield dataclasses.replace(record, kind=Data.LISTS, scores=record.scores or (1.0, 0.0))


def _desirable_only(record: Record, log: Log) -> Iterator[Record]:
    if not record.desirable:
        raise RowError("undesirable", "an undesirable completion cannot be a demonstration")
    yield dataclasses.replace(record, kind=Data.DEMONSTRATIONS, desirable=None)


def _turns_to_train(train_on: str | None) -> Step | None:
    def all_turns(record: Record, log: Log) -> Iterator[Record]:
        """Of a dialogue every turn of the assistant, the prompt ends before the first one."""
        turns, single = record.prompt, record.kind in (Data.UNPAIRED, Data.DEMONSTRATIONS)
        if not single or isinstance(turns, str) or (first := _first_answer(turns)) is None:
            yield record
            return
        (said,) = record.completions
        *earlier, before = turns[first:]
        answer, *more = [Message(role="assistant", content=said)] if isinstance(said, str) else said
        if before["role"] == "assistant" and not before.get("tool_calls"):  # which the answer continues
            answer = {**answer, "content": before["content"] + answer["content"]}
        else:
            earlier.append(before)
        yield dataclasses.replace(record, prompt=turns[:first], completions=((*earlier, answer, *more),))

    def last_turn(record: Record, log: Log) -> Iterator[Record]:
        yield dataclasses.replace(record, completions=tuple(map(_last_alone, record.completions)))

    return {None: None, "all_turns": all_turns, "last_turn": last_turn}[train_on]


def _first_answer(turns: tuple[Message, ...]) -> int | None:
    """The place of the first turn of the assistant after one of the user."""
    roles = [turn["role"] for turn in turns]
    asked = roles.index("user") if "user" in roles else len(roles)
    return next((i for i in range(asked, len(roles)) if roles[i] == "assistant"), None)


def _last_alone(completion: Text) -> Text:
    """A completion of which only the last trained turn is trained."""
    if isinstance(completion, str):
        return completion
    *_, last = (i for i, turn in enumerate(completion) if is_trained(turn))
    return tuple({**turn, "train": False} if is_trained(turn) and i != last else turn
                 for i, turn in enumerate(completion))  # fmt: skip


def _has_ties(records: Sequence[Record]) -> bool:
    return records.ties() if isinstance(records, RecordTable) else any(record.tied for record in records)


def _tie_rule(ties: str) -> Step | None:
    def drop(record: Record, log: Log) -> Iterator[Record]:
        if record.tied:
            raise RowError("tie", "neither side is preferred; data.ties=split or data.ties=keep accepts such rows")
        yield record

    def split(record: Record, log: Log) -> Iterator[Record]:
        if not record.tied:
            yield record
            return
        other = {**reversed_sides(record), "ended": record.ended and record.ended[::-1]}
        for order, sides in (("a", {}), ("b", other)):
            yield dataclasses.replace(record, id=f"{record.id}:{order}", weight=record.weight / 2, **sides)

    return {"drop": drop, "auto": drop, "split": split, "keep": None}[ties]
