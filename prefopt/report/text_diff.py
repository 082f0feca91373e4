"""Marks the words in which two texts differ."""

from __future__ import annotations

import difflib
import re

WORDS = 3000  # and spaces, of both texts together
Pieces = list[tuple[str, bool]]  # a text, and whether only this side has it


def marked(before: str, after: str) -> tuple[Pieces, Pieces]:
    """Split both texts into pieces, marked where the other text differs; compares words and what is between them.

    Longer texts are marked whole: comparing takes up to the cube of their length."""
    a, b = _words(before), _words(after)
    left: Pieces = []
    right: Pieces = []
    if len(a) + len(b) > WORDS:
        return [(before, before != after)], [(after, before != after)]
    for kind, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=True).get_opcodes():
        for pieces, words in ((left, a[i:j]), (right, b[k:m])):
            text = "".join(words)
            if text:
                pieces.append((text, kind != "equal" and bool(text.strip())))
    return left, right


def _words(text: str) -> list[str]:
    return re.findall(r"\s+|\w+|[^\w\s]", text)
