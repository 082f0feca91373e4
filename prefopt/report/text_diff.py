"""Marks the words in which two texts differ."""

from __future__ import annotations

import difflib
import re

Pieces = list[tuple[str, bool]]  # a text, and whether only this side has it


def marked(before: str, after: str) -> tuple[Pieces, Pieces]:
    """Split both texts into pieces, marked where the other text differs; compares words and what is between them."""
    a, b = _words(before), _words(after)
    left: Pieces = []
    right: Pieces = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        for pieces, words in ((left, a[i:j]), (right, b[k:m])):
            text = "".join(words)
            if text:
                pieces.append((text, kind != "equal" and bool(text.strip())))
    return left, right


def _words(text: str) -> list[str]:
    return re.findall(r"\s+|\w+|[^\w\s]", text)
