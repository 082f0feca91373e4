"""Texts that can be shown and kept: no secrets, no control characters."""

from __future__ import annotations

import os
import re
import unicodedata

HIDDEN = "[hidden]"
# Names of environment variables whose values are secrets.
SECRET_NAME = re.compile(r"token|secret|password|passwd|credential|api_?key|access_?key|private_?key", re.IGNORECASE)
SHORTEST = 8  # characters of a variable's value that counts as a secret: "1" and "true" are none
# Tokens of known forms (Hugging Face, OpenAI and alike, GitHub, AWS, Slack), and the user in a URL.
KNOWN = re.compile(
    r"hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|AKIA[0-9A-Z]{16}"
    r"|xox[abprs]-[A-Za-z0-9-]{10,}"
)
IN_URL = re.compile(r"(?<=://)[^/@\s'\"]+:[^/@\s'\"]+(?=@)")
KEEP = "\n\t"


def redact(text: str) -> str:
    """`text` with every secret replaced: values of environment variables with a secret's name, tokens of known forms,
    users and passwords in URLs."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and SECRET_NAME.search(name) and not os.path.exists(value):
            text = text.replace(value, HIDDEN)
    return IN_URL.sub(HIDDEN, KNOWN.sub(HIDDEN, text))


def printable(text: str) -> str:
    """`text` as a terminal may show it: control and format characters other than newline and tab are visible escapes.

    An escape sequence in a model's text or in a file's name could otherwise recolour, move or overwrite what is shown.
    """
    return "".join(
        c if c in KEEP or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else c.encode("unicode_escape").decode()
        for c in text
    )
