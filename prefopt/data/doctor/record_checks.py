"""Checks records for repetitions, unbalanced labels, and texts with damage or markup."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Protocol

from prefopt.data.doctor.findings import Finding
from prefopt.data.make import content_hash
from prefopt.data.record import Record, Text
from prefopt.plugin import Data


class RecordCheck(Protocol):
    """A check in one pass: call `see` with each record, then `findings`."""

    def see(self, record: Record, /) -> None: ...

    def findings(self) -> Iterator[Finding]: ...


class Repetitions:
    """Finds repeated records and prompts, and prompts with contradictory labels."""

    def __init__(self) -> None:
        self.total = 0
        self._contents: set[str] = set()
        self._prompts: set[str] = set()
        self._good: dict[str, set[str]] = defaultdict(set)
        self._bad: dict[str, set[str]] = defaultdict(set)
        self._example: dict[str, str] = {}
        self._duplicates: list[str] = []
        self._repeated: list[str] = []
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
        elif prompt in self._prompts:
            self._repeated.append(record.id)
        self._contents.add(content)
        self._prompts.add(prompt)
        self._example.setdefault(prompt, record.id)
        if record.kind is Data.PAIRS:
            self._good[prompt].add(texts[0])
            self._bad[prompt].add(texts[1])
        elif record.kind is Data.UNPAIRED:
            (self._good if record.desirable else self._bad)[prompt].add(texts[0])

    def findings(self) -> Iterator[Finding]:
        """Duplicates, repeated prompts and contradictions."""
        yield Finding(
            name="duplicate_rows", figure=len(self._duplicates), total=self.total, ids=tuple(self._duplicates)
        )
        again = self._duplicates + self._repeated
        yield Finding(name="repeated_prompts", figure=len(again), total=self.total, ids=tuple(again))
        if self._kind in (Data.PAIRS, Data.UNPAIRED):
            both = [p for p in self._good if self._contradicts(self._good[p], self._bad.get(p, set()))]
            ids = tuple(self._example[prompt] for prompt in both)
            yield Finding(name="contradictory_prompts", figure=len(both), total=len(self._prompts), ids=ids)

    def _contradicts(self, good: set[str], bad: set[str]) -> bool:
        return bool(good & bad) if self._kind is Data.PAIRS else bool(good and bad)


DAMAGE = re.compile("\ufffd|Ã[\u0080-\u00bf©¨¡³±§¶¼¤]|â€[™œ\u009d“”˜¦]|Â[ °»«©®]")
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
MARKUP = re.compile(
    r"</?(?:p|br|div|span|b|i|a|ul|ol|li|h[1-6]|table|tr|td)\b[^<>]*>|&(?:amp|lt|gt|quot|nbsp|#\d+);", re.I
)
TEMPLATE = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|assistant|user|system|end)\|>|\[/?INST\]|<(?:start|end)_of_turn>|<</?SYS>>"
)
SPEAKER = re.compile(r"\b(?:Human|Assistant):")
PATTERNS = {
    "damaged_encoding": DAMAGE,
    "control_characters": CONTROL,
    "markup": MARKUP,
    "template_tokens": TEMPLATE,
    "speaker_marks": SPEAKER,
}


class Marks:
    """Finds damaged characters, markup and template tokens in texts."""

    def __init__(self) -> None:
        self.total = 0
        self._found: dict[str, list[str]] = {name: [] for name in PATTERNS}

    def see(self, record: Record) -> None:
        """Look at one record."""
        self.total += 1
        text = "\n".join(said for part in (record.prompt, *record.completions) for said in turns(part))
        for name, pattern in PATTERNS.items():
            if pattern.search(text):
                self._found[name].append(record.id)

    def findings(self) -> Iterator[Finding]:
        """One finding per mark."""
        for name, ids in self._found.items():
            yield Finding(name=name, figure=len(ids), total=self.total, ids=tuple(ids))


class Labels:
    """Finds unbalanced labels (with weights for KTO), and lists whose first completion is the best."""

    def __init__(self) -> None:
        self._good = self._bad = 0
        self._firsts = self._expected = 0.0
        self._lists = 0

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

    def findings(self) -> Iterator[Finding]:
        """The balance of labels, and the position of the best completion in lists."""
        if self._good + self._bad:
            yield Finding(name="label_balance", figure=self._good / (self._good + self._bad), note=self._weights())
        if self._lists >= 100:
            excess = (self._firsts - self._expected) / self._lists
            yield Finding(name="first_is_best", figure=excess, note=f"{self._lists} lists with a best completion")

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


def turns(text: Text) -> list[str]:
    """The content of each turn."""
    return [text] if isinstance(text, str) else [turn["content"] for turn in text]


def words(text: str) -> list[str]:
    """Words and punctuation marks, in lower case."""
    return re.findall(r"\w+|[^\w\s]", text.lower())
