"""Merges the verdicts that several annotators gave on one pair, each in a row of its own, into one pair."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefopt.data.fields import blank, code_of
from prefopt.data.make import content_hash
from prefopt.data.record import Record
from prefopt.data.record_table import Log, encode
from prefopt.plugin import Data

# Who judged a row, in published sets (summarize_from_feedback: worker; Chatbot Arena and MT-Bench: judge).
COLUMNS = tuple(f"{who}{end}" for who in ("annotator", "worker", "rater", "labeler", "labeller", "evaluator", "judge")
                for end in ("", "_id"))  # fmt: skip


def annotator_of(row: Mapping[str, Any]) -> str:
    """Who judged a row; nothing where the row does not say."""
    for column in COLUMNS:
        if column in row and not isinstance(row[column], bool) and not blank(name := code_of(row[column])):
            return name
    return ""


@dataclass(frozen=True)
class Vote:
    """One verdict on a pair, of which `share` is for the first of its sides; the numbers are as for these sides."""

    id: str
    annotator: str
    weight: float
    share: float
    scores: tuple[float, ...] | None
    margin: float | None

    def reversed(self) -> Vote:
        """The vote as for the sides in the other order."""
        scores = None if self.scores is None else self.scores[::-1]
        margin = None if self.margin is None else -self.margin
        return dataclasses.replace(self, share=1 - self.share, scores=scores, margin=margin)


@dataclass
class Judged:
    """A pair as its first row has it, and the votes on it."""

    record: Record
    votes: list[Vote] = field(default_factory=list)


class Annotators:
    """Collects the pairs of a source that are merged.

    Args:
        rule: `data.annotators`: auto (rows that name their annotator), merge (all rows) or separate (none).
    """

    def __init__(self, rule: str) -> None:
        self.rule = rule
        self._pairs: dict[str, Judged] = {}
        self._repeated = 0

    def __len__(self) -> int:
        """The number of pending pairs: those collected so far, which `merged` gives at the end."""
        return len(self._pairs)

    def note(self, made: Sequence[Any], row: Mapping[str, Any]) -> None:
        """Note the annotator's column of a row as read, if it is used."""
        if self.rule != "separate" and any(isinstance(one, Record) and one.kind is Data.PAIRS for one in made):
            annotator_of(row)

    def merges(self, record: Record, row: Mapping[str, Any]) -> bool:
        """Whether a record is merged with others; one that is not stays as it is."""
        if self.rule == "separate" or record.kind is not Data.PAIRS:
            return False
        return self.rule == "merge" or bool(annotator_of(row))

    def holds(self, record: Record, row: Mapping[str, Any]) -> bool:
        """Whether a record is one more vote on a pending pair."""
        return self.merges(record, row) and _key(record) in self._pairs

    def take(self, record: Record, row: Mapping[str, Any]) -> bool:
        """Keep a record to be merged; False for one that stays as it is."""
        if not self.merges(record, row):
            return False
        who = annotator_of(row)
        pair = self._pairs.setdefault(_key(record), Judged(record))
        share = 0.5 if record.tied else 1.0 if record.probability is None else record.probability
        vote = Vote(record.id, who, record.weight, share, record.scores, record.margin)
        if record.completions != pair.record.completions:
            vote = vote.reversed()
        if who and vote in pair.votes:
            self._repeated += 1
        else:
            pair.votes.append(vote)
        return True

    def merged(self, log: Log) -> Iterator[Record]:
        """The pairs, in the order of their first rows; unchanged where none has two votes."""
        verdicts = sum(len(pair.votes) for pair in self._pairs.values())
        if verdicts == len(self._pairs) and not self._repeated:
            yield from (pair.record for pair in self._pairs.values())
            return
        shares = [_share(pair.votes) for pair in self._pairs.values()]
        names = {vote.annotator for pair in self._pairs.values() for vote in pair.votes}
        log.counts.update({
            "annotators/verdicts": verdicts, "annotators/pairs": len(shares), "annotators/people": len(names - {""}),
            "annotators/repeated": self._repeated, "annotators/disagreed": sum(0 < share < 1 for share in shares),
            "annotators/ties": shares.count(0.5),
        })  # fmt: skip
        for pair in self._pairs.values():
            yield _merged(pair)


def _key(record: Record) -> str:
    """The same for pairs with the same prompt and the same two texts, in either order."""
    ended = record.ended or (True, True)
    sides = sorted([encode(text), end] for text, end in zip(record.completions, ended, strict=True))
    return content_hash([record.prompt, record.arguments, sides])


def _share(votes: Sequence[Vote]) -> float:
    """The share of the first side, by the weights of the votes."""
    return _mean(votes, [vote.share for vote in votes])


def _mean(votes: Sequence[Vote], values: Sequence[float]) -> float:
    weights = [vote.weight for vote in votes]
    if not any(weights):
        weights = [1.0] * len(votes)
    return math.fsum(w * value for w, value in zip(weights, values, strict=True)) / math.fsum(weights)


def _merged(pair: Judged) -> Record:
    """One pair with the share of its votes; their mean scores and margin where these agree with the votes."""
    votes, record = pair.votes, pair.record
    texts = [encode(text) for text in record.completions]
    share = _share(votes)
    if share < 0.5 or (share == 0.5 and texts[0] > texts[1]):  # of a tie whatever the order of the rows
        votes = [vote.reversed() for vote in votes]
        record = dataclasses.replace(
            record, completions=record.completions[::-1], ended=record.ended and record.ended[::-1]
        )
        share = _share(votes)
    scores = margin = None
    if all(vote.scores is not None for vote in votes):
        first, second = (_mean(votes, [vote.scores[i] for vote in votes if vote.scores]) for i in (0, 1))
        scores = (first, second) if _sign(first - second) == _sign(share - 0.5) else None
    if all(vote.margin is not None for vote in votes):
        margin = _mean(votes, [vote.margin for vote in votes if vote.margin is not None])
        margin = margin if _sign(margin) == _sign(share - 0.5) else None
    return dataclasses.replace(
        record,
        id=votes[0].id if len(votes) == 1 else content_hash(sorted(vote.id for vote in votes)),
        scores=scores,
        margin=margin,
        probability=share,
        weight=math.fsum(vote.weight for vote in votes) / len(votes),
    )


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
