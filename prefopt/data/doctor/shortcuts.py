"""Measures how well the preference follows from shortcuts: length, words without order, or one feature of format."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_matrix

from prefopt.data.doctor.findings import Finding, Histogram
from prefopt.data.doctor.words import terms, turns
from prefopt.data.make import content_hash
from prefopt.data.record import Record, Text
from prefopt.plugin import Data

WORD_BUCKETS = 2**14
MOST_RECORDS = 20_000  # that the word rule is fitted on
LEAST_HELD_OUT = 50
PENALTY = 1.0  # of the squared weights of the word rule


def sides(record: Record) -> tuple[Text | None, Text | None]:
    """(good text, bad text) of a record, the best and worst of a list; None if there is no such text."""
    if record.kind is Data.PAIRS:
        return record.completions[0], record.completions[1]
    if record.kind is Data.UNPAIRED:
        return (record.completions[0], None) if record.desirable else (None, record.completions[0])
    if record.kind is Data.LISTS and record.scores and len(set(record.scores)) > 1:
        scores = list(record.scores)
        return record.completions[scores.index(max(scores))], record.completions[scores.index(min(scores))]
    return (record.completions[0], None) if record.completions else (None, None)


class LengthRule:
    """How well length in characters predicts the preference."""

    def __init__(self) -> None:
        self._good: list[int] = []
        self._bad: list[int] = []
        self._prompts: list[int] = []
        self._paired = True

    def see(self, record: Record) -> None:
        """Look at one record."""
        good, bad = sides(record)
        self._prompts.append(sum(map(len, turns(record.prompt))))
        self._paired = record.kind in (Data.PAIRS, Data.LISTS)
        if self._paired and bad is None:
            return
        if good is not None:
            self._good.append(sum(map(len, turns(good))))
        if bad is not None:
            self._bad.append(sum(map(len, turns(bad))))

    def findings(self) -> Iterator[Finding]:
        """The length bias, and the accuracy of the best rule."""
        good, bad = np.array(self._good), np.array(self._bad)
        if not len(good) or not len(bad):
            return
        if self._paired:
            wins = float(np.mean((good > bad) + 0.5 * (good == bad)))
            error = 0.5 / np.sqrt(len(good))
            note = f"chosen {good.mean():.0f}, rejected {bad.mean():.0f} characters on average"
            yield Finding(name="longer_chosen", figure=round(wins, 4), note=f"{note}; standard error {error:.3f}")
            yield Finding(name="length_rule", figure=round(max(wins, 1 - wins), 4), note=f"{len(good)} pairs")
        else:
            note = "both labels have the same weight"
            yield Finding(name="length_rule", figure=round(_best_cut(good, bad), 4), note=note)

    def histogram(self) -> Histogram:
        """Lengths of prompts and of both sides."""
        series = {"prompt": self._prompts, "chosen": self._good, "rejected": self._bad}
        return histogram("Length in characters", "characters", {k: np.array(v) for k, v in series.items() if v})


def _best_cut(good: NDArray[np.int64], bad: NDArray[np.int64]) -> float:
    """Balanced accuracy of the best single threshold, in either direction."""
    cuts = np.unique(np.concatenate([good, bad]))
    above_good = 1 - np.searchsorted(np.sort(good), cuts, side="right") / len(good)
    above_bad = 1 - np.searchsorted(np.sort(bad), cuts, side="right") / len(bad)
    accuracy = (above_good + 1 - above_bad) / 2
    return float(np.max(np.maximum(accuracy, 1 - accuracy)))


class WordRule:
    """Logistic regression on which words occur, fitted on four fifths of the prompts and tested on the others."""

    def __init__(self) -> None:
        self._rows: list[dict[int, float]] = []
        self._labels: list[float] = []
        self._held_out: list[bool] = []
        self._names: dict[int, str] = {}
        self._paired = True

    def see(self, record: Record) -> None:
        """Look at one record."""
        good, bad = sides(record)
        self._paired = record.kind in (Data.PAIRS, Data.LISTS)
        if len(self._rows) >= MOST_RECORDS or (self._paired and bad is None):
            return
        row = dict.fromkeys(self._buckets(good), 1.0)
        for bucket in self._buckets(bad):
            row[bucket] = row.get(bucket, 0.0) - 1.0 if self._paired else 1.0
        self._rows.append(row)
        self._labels.append(1.0 if good is not None else 0.0)
        self._held_out.append(int(content_hash(record.prompt), 16) % 5 == 0)

    def findings(self) -> Iterator[Finding]:
        """The accuracy on held-out prompts."""
        out = np.array(self._held_out, bool)
        labels = np.array(self._labels)
        if out.sum() < LEAST_HELD_OUT or (not self._paired and len(set(self._labels)) < 2):
            return
        x = _matrix(self._rows)
        weights = _fit(x[~out], labels[~out], intercept=not self._paired)
        logits = x[out] @ weights[:-1] + weights[-1]
        right = (logits > 0) == (labels[out] > 0)
        accuracy = float(np.mean(np.where(logits == 0, 0.5, right)))
        if not self._paired:
            accuracy = float(
                np.mean([np.mean(right[labels[out] == side]) for side in (0, 1) if (labels[out] == side).any()])
            )
        strongest = np.argsort(-np.abs(weights[:-1]))[:8]
        shown = ", ".join(
            f"{self._names[int(i)]} ({'+' if weights[i] > 0 else '−'})" for i in strongest if int(i) in self._names
        )
        error = 0.5 / np.sqrt(out.sum())
        yield Finding(
            name="word_rule", figure=round(accuracy, 4),
            note=f"{int(out.sum())} held out, standard error {error:.3f}; strongest words: {shown}",
        )  # fmt: skip

    def _buckets(self, text: Text | None) -> set[int]:
        found = set()
        for word in terms(" ".join(turns(text))) if text is not None else ():
            bucket = zlib.crc32(word.encode()) % WORD_BUCKETS
            self._names.setdefault(bucket, word)
            found.add(bucket)
        return found


def _matrix(rows: list[dict[int, float]]) -> csr_matrix:
    offsets = np.cumsum([0, *map(len, rows)])
    columns = np.fromiter((c for row in rows for c in row), np.int32, offsets[-1])
    values = np.fromiter((v for row in rows for v in row.values()), np.float64, offsets[-1])
    return csr_matrix((values, columns, offsets), shape=(len(rows), WORD_BUCKETS))


def _fit(x: csr_matrix, labels: NDArray[np.float64], *, intercept: bool) -> NDArray[np.float64]:
    """(buckets + 1,) weights of a penalised logistic regression; the last is the intercept."""
    signs = 2 * labels - 1

    def value(w: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margins = signs * (x @ w[:-1] + w[-1])
        pull = -signs / (1 + np.exp(np.clip(margins, -500, 500)))
        gradient = np.append(x.T @ pull + PENALTY * w[:-1], pull.sum() if intercept else 0.0)
        return float(np.logaddexp(0, -margins).sum() + PENALTY / 2 * w[:-1] @ w[:-1]), gradient

    found = minimize(value, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 100})
    return np.asarray(found.x)


ENDS = ".!?\"')" + "。．｡！？…؟۔।॥”’»」』）］】》"
LIST_ITEM = re.compile(r"^\s*(?:(?:[-*•]|\d+[.)])\s|[・●▪]|[（(]?(?:\d+|[一二三四五六七八九十]+)[）、．])", re.M)
APOLOGY = re.compile(
    r"\b(?:sorry|apologi[sz]e|cannot|can't|unable)\b|抱歉|对不起|對不起|无法|無法|申し訳|すみません|できません|ขอโทษ|ขออภัย"
    r"|ไม่สามารถ|آسف|عذر|أعتذر|لا أستطيع|لا يمكن",
    re.I,
)
FEATURES: dict[str, Callable[[str], bool]] = {
    "begins with a space": lambda text: text[:1].isspace(),
    "ends with a space": lambda text: text[-1:].isspace(),
    "ends with punctuation": lambda text: text.rstrip()[-1:] in ENDS,
    "has a list": lambda text: LIST_ITEM.search(text) is not None,
    "has code": lambda text: "```" in text,
    "has bold": lambda text: "**" in text,
    "has a question": lambda text: re.search("[?？؟]", text) is not None,
    "has several paragraphs": lambda text: "\n\n" in text.strip(),
    "apologises": lambda text: APOLOGY.search(text) is not None,
    "has an exclamation mark": lambda text: re.search("[!！]", text) is not None,
    "begins with a capital": lambda text: text.strip()[:1].isupper(),
}


class FormatRule:
    """The feature of format that predicts the preference best."""

    def __init__(self) -> None:
        self._good = dict.fromkeys(FEATURES, 0)
        self._bad = dict.fromkeys(FEATURES, 0)
        self._goods = self._bads = 0

    def see(self, record: Record) -> None:
        """Look at one record."""
        good, bad = sides(record)
        if record.kind in (Data.PAIRS, Data.LISTS) and bad is None:
            return
        for text, counts in ((good, self._good), (bad, self._bad)):
            if text is not None:
                content = "\n".join(turns(text))
                for name, has in FEATURES.items():
                    counts[name] += has(content)
        self._goods += good is not None
        self._bads += bad is not None

    def findings(self) -> Iterator[Finding]:
        """Balanced accuracy of the best feature."""
        if not self._goods or not self._bads:
            return
        rates = {name: (self._good[name] / self._goods, self._bad[name] / self._bads) for name in FEATURES}
        name, (good, bad) = max(rates.items(), key=lambda item: abs(item[1][0] - item[1][1]))
        yield Finding(
            name="format_rule", figure=round(0.5 + abs(good - bad) / 2, 4),
            note=f"{name!r}: {good:.0%} of the good, {bad:.0%} of the bad",
        )  # fmt: skip


def histogram(title: str, unit: str, series: dict[str, NDArray[np.int64]]) -> Histogram:
    """A histogram in bins of equal ratio."""
    top = max(int(values.max()) for values in series.values() if len(values))
    edges = np.unique(np.round(np.geomspace(1, max(top, 2) + 1, 25)))
    edges[0] = 0
    return Histogram(
        title=title, unit=unit, edges=edges.tolist(),
        series={name: np.histogram(values, edges)[0].tolist() for name, values in series.items()},
    )  # fmt: skip
