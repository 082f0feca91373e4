"""Splits texts into words, in scripts with and without spaces between them."""

from __future__ import annotations

import re
import unicodedata

from prefopt.data.images.image_files import readable
from prefopt.data.record import Text

# Scripts without spaces between words: Thai, Lao, Burmese, Khmer, Chinese, Japanese. Each character counts as a word.
SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
# Vowel signs, accents and joiners, which belong to the character before them: no word ends at one.
MARKS = "".join(
    chr(code)
    for code in (*range(0x300, 0x2100), *range(0x3099, 0x309B), *range(0xFE20, 0xFE30))
    if unicodedata.category(chr(code)).startswith("M") or code in (0x200C, 0x200D)
)
ASCII_WORD = re.compile(r"\w+|[^\w\s]")
WORD = re.compile(rf"[{SPACELESS}][{MARKS}]*|(?:[^\W{SPACELESS}][{MARKS}]*)+|[^\w\s]")
ALONE = re.compile(f"[{SPACELESS}]")


def turns(text: Text) -> list[str]:
    """The content of each turn, with words in place of images."""
    return [*map(readable, [text] if isinstance(text, str) else [turn["content"] for turn in text])]


def words(text: str) -> list[str]:
    """Words and punctuation marks, in lower case; single characters in scripts without spaces."""
    text = text.lower()
    return (ASCII_WORD if text.isascii() else WORD).findall(text)


def terms(text: str) -> set[str]:
    """The words that occur, and in scripts without spaces also each two characters in a row."""
    found = words(text)
    alone = [bool(ALONE.match(word)) for word in found]
    pairs = {found[i] + found[i + 1] for i in range(len(found) - 1) if alone[i] and alone[i + 1]}
    return {*found, *pairs}
