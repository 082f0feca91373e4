"""Finds nearly equal texts, by MinHash over word triples (Broder, 1997) with locality-sensitive bands."""

from __future__ import annotations

import itertools
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from prefopt.data.doctor.findings import Finding
from prefopt.data.doctor.words import turns, words
from prefopt.data.images.image_places import images_of
from prefopt.data.make import content_hash
from prefopt.data.record import Record, Text

HASHES, BANDS = 48, 12  # bands of 4: texts of Jaccard 0.8 share one with probability 0.998
LEAST_WORDS = 8  # shorter texts are similar by chance
LEAST_JACCARD = 0.8
MOST_RECORDS = 200_000
_DRAW = np.random.default_rng(0)
_FACTORS = _DRAW.integers(1, 2**63, HASHES, dtype=np.uint64) | np.uint64(1)
_SHIFTS = _DRAW.integers(0, 2**63, HASHES, dtype=np.uint64)


def signature(text: str) -> NDArray[np.uint32] | None:
    """(HASHES,) smallest hashes of the text's word triples; None for a text that is too short."""
    found = words(text)
    if len(found) < LEAST_WORDS:
        return None
    h = np.fromiter((zlib.crc32(word.encode()) for word in found), np.uint64, len(found))
    triples = h[:-2] * np.uint64(0x9E3779B97F4A7C15) + h[1:-1] * np.uint64(0xC2B2AE3D27D4EB4F) + h[2:]
    mixed = triples[:, None] * _FACTORS + _SHIFTS
    least: NDArray[np.uint64] = mixed.min(axis=0)
    return (least >> np.uint64(32)).astype(np.uint32)


class Index:
    """An index of texts that finds similar ones."""

    def __init__(self) -> None:
        self._signatures: list[NDArray[np.uint32]] = []
        self._bands: dict[bytes, int] = {}

    def has_similar(self, one: NDArray[np.uint32]) -> bool:
        """Whether a text of similarity of about LEAST_JACCARD or more was added."""
        return self.similar(one) is not None

    def similar(self, one: NDArray[np.uint32]) -> int | None:
        """The number of the first text of such similarity that was added."""
        near = {self._bands[key] for key in _keys(one) if key in self._bands}
        return min((i for i in near if float(np.mean(self._signatures[i] == one)) >= LEAST_JACCARD), default=None)

    def add(self, one: NDArray[np.uint32]) -> None:
        """Add a text."""
        for key in _keys(one):
            self._bands.setdefault(key, len(self._signatures))
        self._signatures.append(one)


def _keys(one: NDArray[np.uint32]) -> Iterator[bytes]:
    return (bytes([band]) + part.tobytes() for band, part in enumerate(np.split(one, BANDS)))


def near_copies(texts: Sequence[str]) -> list[str]:
    """Give texts that are nearly the same one name; what all of them begin or end with is left out of account.

    Short texts are the same where their words are.
    """
    split = [words(text) for text in texts]
    head = _shared(split)
    tail = _shared([found[head:][::-1] for found in split])
    index = Index()
    added: list[str] = []
    names: dict[str, str] = {}
    for found in split:
        text = " ".join(found[head : len(found) - tail])
        if text in names:
            continue
        one = signature(text)
        at = index.similar(one) if one is not None else None
        names[text] = added[at] if at is not None else text
        if one is not None and at is None:
            index.add(one)
            added.append(text)
    return [names[" ".join(found[head : len(found) - tail])] for found in split]


def _shared(texts: Sequence[Sequence[str]]) -> int:
    """The number of words with which all texts begin."""
    return sum(1 for _ in itertools.takewhile(lambda found: len(set(found)) == 1, zip(*texts, strict=False)))


Pictures = tuple[str, ...]  # the images of a prompt


class NearDuplicates:
    """Finds records nearly the same as an earlier one in prompt and first completion, other than exact duplicates."""

    def __init__(self) -> None:
        self._indices: dict[Pictures, Index] = defaultdict(Index)  # prompts about other images are others
        self._exact: set[str] = set()
        self._near: list[str] = []
        self._seen = 0

    def see(self, record: Record) -> None:
        """Look at one record."""
        text = _joined(record.prompt) + "\n" + "".join(map(_joined, record.completions[:1]))
        pictures = tuple(images_of(record.prompt))
        name = content_hash([pictures, text, record.completions[1:]])
        if self._seen >= MOST_RECORDS or name in self._exact:
            return
        self._exact.add(name)
        self._seen += 1
        one = signature(text)
        if one is None:
            return
        if self._indices[pictures].has_similar(one):
            self._near.append(record.id)
        else:
            self._indices[pictures].add(one)

    def findings(self) -> Iterator[Finding]:
        """The near duplicates."""
        note = f"of the first {MOST_RECORDS:,} records" if self._seen == MOST_RECORDS else ""
        yield Finding(
            name="near_duplicates", figure=len(self._near), total=self._seen, ids=tuple(self._near), note=note
        )


class Leaks:
    """Finds records whose prompt, or nearly the same one, is held out."""

    def __init__(self, held_out: Iterable[Record]) -> None:
        self._prompts: set[str] = set()
        self._indices: dict[Pictures, Index] = defaultdict(Index)
        self._exact: list[str] = []
        self._near: list[str] = []
        self._total = 0
        for record in held_out:
            name = content_hash(record.prompt)
            if name not in self._prompts and (one := signature(_joined(record.prompt))) is not None:
                self._indices[tuple(images_of(record.prompt))].add(one)
            self._prompts.add(name)

    def see(self, record: Record) -> None:
        """Look at one training record."""
        self._total += 1
        if content_hash(record.prompt) in self._prompts:
            self._exact.append(record.id)
            return
        index = self._indices.get(tuple(images_of(record.prompt)))
        if index is not None and (one := signature(_joined(record.prompt))) is not None and index.has_similar(one):
            self._near.append(record.id)

    def findings(self) -> Iterator[Finding]:
        """Exact and near leaks."""
        yield Finding(name="leaked_prompts", figure=len(self._exact), total=self._total, ids=tuple(self._exact))
        yield Finding(name="near_leaks", figure=len(self._near), total=self._total, ids=tuple(self._near))


def _joined(text: Text) -> str:
    return "\n".join(turns(text))
