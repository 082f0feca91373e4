"""Checks records for repetitions, unbalanced labels, and texts with damage or markup."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise, product
from typing import Protocol

from prefopt.data.doctor.findings import Finding
from prefopt.data.doctor.words import turns
from prefopt.data.make import content_hash
from prefopt.data.record import Record
from prefopt.data.templates import TEMPLATE_MARKS
from prefopt.plugin import Data

LEAST_REPEATED = 3  # prompts that have the same answer
LIMIT = "good above, bad below"  # what texts with labels are compared with


class RecordCheck(Protocol):
    """A check in one pass: call `see` with each record, then `findings`."""

    def see(self, record: Record, /) -> None: ...

    def findings(self) -> Iterator[Finding]: ...


class Repetitions:
    """Finds repeated records, prompts and answers, and prompts with contradictory verdicts."""

    def __init__(self) -> None:
        self.total = 0
        self._contents: set[str] = set()
        self._verdicts: dict[str, set[tuple[str, str]]] = defaultdict(set)  # prompt -> (better text, worse text)
        self._example: dict[str, str] = {}
        self._duplicates: list[str] = []
        self._repeated: list[str] = []
        self._answered: set[int] = set()  # hashes of prompt and answer
        self._answers: Counter[str] = Counter()  # answer -> prompts that have it
        self._shown: dict[str, str] = {}
        self._kind: Data | None = None

    def see(self, record: Record) -> None:
        """Look at one record."""
        self.total += 1
        self._kind = record.kind
        prompt = content_hash(record.prompt)
        texts = [content_hash(text) for text in record.completions]
        content = content_hash([prompt, texts, record.desirable, record.scores])
        if content in self._contents:
            self._duplicates.append(record.id)
        elif prompt in self._example:
            self._repeated.append(record.id)
        self._contents.add(content)
        self._example.setdefault(prompt, record.id)
        self._verdicts[prompt].update(_verdicts(record, texts))
        for name, text in zip(texts, record.completions, strict=True):
            if (key := hash((prompt, name))) not in self._answered:
                self._answered.add(key)
                self._answers[name] += 1
                if self._answers[name] == LEAST_REPEATED:
                    self._shown[name] = " ".join(" ".join(turns(text)).split())[:60]

    def findings(self) -> Iterator[Finding]:
        """Duplicates, repeated prompts and answers, and contradictions."""
        yield Finding(
            name="duplicate_rows", figure=len(self._duplicates), total=self.total, ids=tuple(self._duplicates)
        )
        again = self._duplicates + self._repeated
        yield Finding(name="repeated_prompts", figure=len(again), total=self.total, ids=tuple(again))
        often = {name: self._answers[name] for name in self._shown}
        top = max(often, key=lambda name: often[name], default="")
        note = f"{self._shown[top]!r}; {len(often)} answers belong to {LEAST_REPEATED} prompts or more" if often else ""
        yield Finding(name="repeated_answers", figure=often.get(top, 0), total=len(self._example), note=note)
        if self._kind not in (Data.DEMONSTRATIONS, Data.PROMPTS):
            wrong = [prompt for prompt, verdicts in self._verdicts.items() if _has_cycle(verdicts)]
            ids = tuple(self._example[prompt] for prompt in wrong)
            yield Finding(name="contradictory_prompts", figure=len(wrong), total=len(self._example), ids=ids)


def _verdicts(record: Record, texts: list[str]) -> Iterator[tuple[str, str]]:
    """(better, worse) texts: in a list the next below each, in a tie none; a label compares a text with the limit."""
    if record.kind is Data.UNPAIRED:
        yield (texts[0], LIMIT) if record.desirable else (LIMIT, texts[0])
    elif record.kind is Data.LISTS or (record.scores and record.scores[0] == record.scores[1]):
        scores = record.scores or ()
        ranks = sorted(set(scores), reverse=True)
        for above, below in pairwise([t for t, s in zip(texts, scores, strict=True) if s == rank] for rank in ranks):
            yield from product(above, below)
    elif record.kind is Data.PAIRS:
        yield texts[0], texts[1]


def _has_cycle(verdicts: set[tuple[str, str]]) -> bool:
    """Whether a text is better than itself: by two opposite verdicts, or by a circle of more."""
    if len(verdicts) < 2:
        return False
    order: TopologicalSorter[str] = TopologicalSorter()
    for better, worse in verdicts:
        order.add(better, worse)
    try:
        order.prepare()
    except CycleError:
        return True
    return False


# UTF-8 read as Latin-1 (European, Chinese and Japanese, Thai, Arabic), or as GBK.
DAMAGE = re.compile(
    "\ufffd|Ã[\u0080-\u00bf©¨¡³±§¶¼¤]|â€[™œ\u009d“”˜¦]|Â[ °»«©®]|[ä-é][\u0080-\u00bf]{2}|(?:à[¸¹][\u0080-\u00bf]){2}"
    "|(?:[ØÙ][\u0080-\u00bf]){2}|锟斤拷"
)
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
MARKUP = re.compile(
    r"</?(?:p|br|div|span|b|i|a|ul|ol|li|h[1-6]|table|tr|td)\b[^<>]*>|&(?:amp|lt|gt|quot|nbsp|#\d+);", re.I
)
SPEAKER = re.compile(
    r"\b(?:Human|Assistant):|(?:用户|用戶|人类|助手|ユーザー|アシスタント|ผู้ใช้|ผู้ช่วย|المستخدم|المساعد)[:：]"
)
PLACEHOLDER = re.compile(r"<no[ _-]?(?:in|out)put>", re.I)
PLACEHOLDER_TURN = re.compile(r"\s*(?:\[(?:deleted|removed)\]|null|nan|n/a|undefined)\s*", re.I)
PATTERNS = {
    "damaged_encoding": DAMAGE,
    "control_characters": CONTROL,
    "markup": MARKUP,
    "template_tokens": TEMPLATE_MARKS,
    "speaker_marks": SPEAKER,
    "placeholders": PLACEHOLDER,
}


class Marks:
    """Finds damaged characters, markup and template tokens in texts."""

    def __init__(self, marks: re.Pattern[str] | None = None) -> None:
        self.total = 0
        self._patterns = {**PATTERNS, "template_tokens": marks or TEMPLATE_MARKS}
        self._found: dict[str, list[str]] = {name: [] for name in PATTERNS}

    def see(self, record: Record) -> None:
        """Look at one record."""
        self.total += 1
        parts = [said for part in (record.prompt, *record.completions) for said in turns(part)]
        text = "\n".join(parts)
        for name, pattern in self._patterns.items():
            if pattern.search(text) or (name == "placeholders" and any(map(PLACEHOLDER_TURN.fullmatch, parts))):
                self._found[name].append(record.id)

    def findings(self) -> Iterator[Finding]:
        """One finding per mark."""
        for name, ids in self._found.items():
            yield Finding(name=name, figure=len(ids), total=self.total, ids=tuple(ids))


class RowFacts:
    """Lists what rows say beside their texts: weights, margins, probabilities, ties."""

    def __init__(self) -> None:
        self.total = 0
        self._values: dict[str, list[float]] = {"weight": [], "margin": [], "probability": []}
        self._against: list[str] = []
        self._tied: list[str] = []
        self._pairs = False

    def see(self, record: Record) -> None:
        """Look at one record."""
        self.total += 1
        if record.weight != 1:
            self._values["weight"].append(record.weight)
        if record.kind is not Data.PAIRS:
            return
        self._pairs = True
        for name, value in (("margin", record.margin), ("probability", record.probability)):
            if value is not None:
                self._values[name].append(value)
        if (record.margin or 0.0) < 0 or (record.probability if record.probability is not None else 1.0) < 0.5:
            self._against.append(record.id)
        if record.tied:
            self._tied.append(record.id)

    def findings(self) -> Iterator[Finding]:
        """How many records have each fact, with its range; and which facts are against the label."""
        for name, values in self._values.items():
            if values:
                low, mean, high = min(values), sum(values) / len(values), max(values)
                note = f"from {low:.4g} to {high:.4g}, mean {mean:.4g}"
                yield Finding(name=f"with_{name}", figure=len(values), total=self.total, note=note)
        if self._pairs:
            yield Finding(name="ties", figure=len(self._tied), total=self.total, ids=tuple(self._tied))
        if self._values["margin"] or self._values["probability"]:
            against = tuple(self._against)
            yield Finding(name="margin_against_label", figure=len(against), total=self.total, ids=against)


class Labels:
    """Finds unbalanced labels (with weights for KTO), lists whose first completion is the best, and scores that
    contradict the pair."""

    def __init__(self) -> None:
        self._good = self._bad = 0
        self._firsts = self._expected = 0.0
        self._lists = self._scored = 0
        self._lower: list[str] = []

    def see(self, record: Record) -> None:
        """Look at one record."""
        if record.kind is Data.UNPAIRED:
            self._good += bool(record.desirable)
            self._bad += not record.desirable
        elif record.kind is Data.LISTS and record.scores and len(set(record.scores)) > 1:
            best = max(record.scores)
            self._lists += 1
            self._firsts += record.scores[0] == best
            self._expected += record.scores.count(best) / len(record.scores)
        elif record.kind is Data.PAIRS and record.scores:
            self._scored += 1
            if record.scores[0] < record.scores[1]:
                self._lower.append(record.id)

    def findings(self) -> Iterator[Finding]:
        """The balance of labels, and the position of the best completion in lists."""
        if self._good + self._bad:
            yield Finding(name="label_balance", figure=self._good / (self._good + self._bad), note=self._weights())
        if self._lists >= 100:
            excess = (self._firsts - self._expected) / self._lists
            yield Finding(name="first_is_best", figure=excess, note=f"{self._lists} lists with a best completion")
        if self._scored:
            lower = tuple(self._lower)
            yield Finding(name="chosen_scored_lower", figure=len(lower), total=self._scored, ids=lower)

    def _weights(self) -> str:
        """The weights for which desirable_weight * good / (undesirable_weight * bad) is in KTO's range, 1 to 4/3."""
        good, bad = self._good, self._bad
        counts = f"{good} desirable, {bad} undesirable"
        if not good or not bad:
            return f"{counts}: KTO needs both"
        if 1 <= good / bad <= 4 / 3:
            return f"{counts}: balanced, KTO's weights can stay 1"
        if good < bad:
            return f"{counts}: kto with loss.desirable_weight={bad / good:.3g} to {4 / 3 * bad / good:.3g}"
        return f"{counts}: kto with loss.undesirable_weight={3 / 4 * good / bad:.3g} to {good / bad:.3g}"
