"""Removes secrets and control characters from texts that are shown or kept."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

HIDDEN = "[hidden]"
# Names of environment variables whose values are secrets.
SECRET_NAME = re.compile(
    r"token|secret|password|passwd|credential|api_?key|access_?key|private_?key|(?:^|_)(?:pass|passphrase|auth|key)$"
    r"|_pwd$",
    re.IGNORECASE,
)
SHORTEST = 8  # characters that a secret has at least: "1" and "true" are none
# Tokens of Hugging Face, OpenAI and alike (but not task-..., risk-...), GitHub, AWS, Slack, GitLab and Google.
KNOWN = re.compile(
    r"hf_[A-Za-z0-9]{20,}|(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
    r"|AKIA[0-9A-Z]{16}|xox[abprs]-[A-Za-z0-9-]{10,}|glpat-[\w-]{20,}|AIza[\w-]{35}"
)
# The user of a URL: with a password, and without one where a token can take its place (git@host is an address).
IN_URL = re.compile(
    r"(?<=://)[^/@\s'\"]+:[^/@\s'\"]+(?=@)|(?:(?<=http://)|(?<=https://))(?!\[hidden\]@)[^/?#@\s'\"]+(?=@)"
)
# What follows these is a secret: a signature or a token in a URL's query, and the value of an HTTP header. Tokens have
# digits, and words of a sentence about them have none.
AFTER = re.compile(
    r"((?:[?&]|&amp;)(?:x-(?:amz|goog)-(?:signature|credential|security-token)|signature|sig|token|access_token|auth"
    r"|auth_token|api_?key|secret|password)=)[^&\s'\"#<>]{8,}"
    r"|(\bauthorization['\"]?[:=]\s*['\"]?(?:basic|token)\s+|\bbearer\s+)(?=[\w.~+/=-]*\d)[\w.~+/=-]{16,}",
    re.IGNORECASE,
)
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
KEEP = "\n\t"


def redact(text: str) -> str:
    """Replace every secret in a text: values of environment variables with a secret's name, tokens of known forms,
    users and passwords in URLs, signatures and tokens in their queries, and the values of headers that carry tokens."""
    return _redactor()(text)


def redacted(value: Any) -> Any:
    """Replace every secret in the texts of a JSON value, keys included.

    In JSON itself a secret with quotes or non-ASCII letters is escaped, and would not be found.
    """
    hide = _redactor()

    def walk(part: Any) -> Any:
        if isinstance(part, str):
            return hide(part)
        if isinstance(part, Mapping):
            return {hide(key) if isinstance(key, str) else key: walk(inner) for key, inner in part.items()}
        return [walk(inner) for inner in part] if isinstance(part, list | tuple) else part

    return walk(value)


def _redactor() -> Callable[[str], str]:
    """`redact` with the secrets of the environment as it is now."""
    secrets = {
        value
        for name, value in os.environ.items()
        if len(value) >= SHORTEST
        and SECRET_NAME.search(name)
        and not os.path.exists(value)
        # DB_AUTH=required is a mode, and its value an ordinary word
        and not (name.lower().endswith("auth") and value.isalpha())
    }
    longest_first = sorted(secrets, key=len, reverse=True)  # one may contain another

    def hide(text: str) -> str:
        for secret in longest_first:
            text = text.replace(secret, HIDDEN)
        text = IN_URL.sub(HIDDEN, KNOWN.sub(HIDDEN, text))
        return AFTER.sub(lambda found: f"{found[1] or found[2]}{HIDDEN}", text)

    return hide


def one_line(message: str) -> str:
    """A message on one line, without secrets or control characters."""
    return printable(" ".join(redact(message).split()))


def without_control(text: str) -> str:
    """Replace what controls a terminal or the direction of text by visible escapes, and keep what joins letters."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable(text: str) -> str:
    """Replace control and format characters, except newline and tab, by visible escapes.

    An escape sequence in a model's text or in a file's name could otherwise recolour or overwrite a terminal.
    """
    return "".join(
        c if c in KEEP or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else c.encode("unicode_escape").decode()
        for c in text
    )
