"""What all fuzz tests share: hostile values, bytes and texts, and the one property that every case must have.

`attempt(action)` ends in a value or in an error of ours. Anything else fails the test: another error, more than
`SECONDS` of processor time, a file written outside the folders that the case was given, a process started, a network
connection, an object taken out of a pickle.
"""

from __future__ import annotations

import datetime
import decimal
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from prefopt.common.redact import printable
from prefopt.errors import PrefoptError

CASES = int(os.environ.get("PREFOPT_FUZZ", "600"))
SHARES = 2.0  # of all tests together
SECONDS = 20  # of processor time, for a case that takes milliseconds

done: Counter[tuple[str, str]] = Counter()  # (test, "accepted" or "refused") -> cases
slowest: dict[str, float] = {}  # test -> processor seconds


def cases(share: float) -> Any:
    """So large a share of all cases (of `SHARES`); a few at least. Those of the suite are the same every time."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    phases = [Phase.explicit, Phase.generate]  # a failing case is shown as it was found
    return settings(
        max_examples=max(5, round(CASES * share / SHARES)), deadline=None, suppress_health_check=checks, phases=phases,
        database=None, derandomize="PREFOPT_FUZZ" not in os.environ,
    )  # fmt: skip


# ---- the property


class Hang(BaseException):
    """Not an Exception: nothing may catch it."""


class Outside(BaseException):
    """The case did what no input may make us do."""


FORBIDDEN = {"os.system", "os.exec", "os.posix_spawn", "pty.spawn", "subprocess.Popen", "socket.connect",
             "pickle.find_class", "webbrowser.open"}  # fmt: skip
CHANGES = {"os.rename": 2, "os.remove": 1, "os.mkdir": 1, "os.rmdir": 1, "os.link": 2, "os.symlink": 2,
           "os.truncate": 1, "os.chmod": 1, "shutil.rmtree": 1}  # fmt: skip
_roots: list[str] = []  # where a case may write
_watched = False  # a case runs
_others: set[int | None] = set()  # threads of earlier tests, such as a tracker's
_wrong: list[str] = []


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not _watched or threading.get_ident() in _others:
        return
    if event in FORBIDDEN:
        _wrong.append(f"{event} {args!r:.200}")
        raise Outside(_wrong[-1])
    if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
        mode, flags = args[1], args[2]
        writes = any(c in mode for c in "wax+") if isinstance(mode, str) else (flags or 0) & (os.O_WRONLY | os.O_RDWR)
        paths = [args[0]] if writes else []
    else:
        paths = [p for p in args[: CHANGES.get(event, 0)] if isinstance(p, str | bytes | os.PathLike)]
    for path in paths:
        full = os.path.realpath(os.fsdecode(path))
        if not full.startswith(tuple(_roots)) and "__pycache__" not in full and full != os.devnull:
            _wrong.append(f"{event} {full}")
            raise Outside(_wrong[-1])


sys.addaudithook(_hook)


def _hang(*_: Any) -> None:
    raise Hang(f"more than {SECONDS} s of processor time")


@contextmanager
def only_inside(*folders: Path) -> Iterator[None]:
    """While it is open, cases may write into these folders alone."""
    global _roots
    old, handler = _roots, signal.signal(signal.SIGVTALRM, _hang)
    _roots = [os.path.realpath(folder) for folder in folders]
    try:
        yield
    finally:
        _roots = old
        signal.signal(signal.SIGVTALRM, handler)


def attempt(action: Callable[[], Any]) -> Any:
    """What it gives, or None after an error of ours: one that has a text without control characters."""
    name = os.environ.get("PYTEST_CURRENT_TEST", "").split(" ")[0].split("[")[0]
    global _watched, _others
    _others = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}
    began = time.process_time()
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    _watched = True
    try:
        value, said = action(), "nothing to say"
        done[name, "accepted"] += 1
    except PrefoptError as error:
        value, said = None, printable(str(error))
        done[name, "refused"] += 1
    finally:
        _watched = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        slowest[name] = max(slowest.get(name, 0.0), time.process_time() - began)
    assert said, "an error that says nothing"
    assert not _wrong, _wrong  # also where somebody caught it
    return value


# ---- what is hostile

words = st.one_of(
    st.text(max_size=20),
    st.sampled_from([
        "", "../../x", "/etc/passwd", "..", "file:///etc/passwd", "C:\\x", "a" * 300,
        "\x00", "\x1b[2J", "\x9b31m", "\u202e", "_target_", "os.system", "${oc.env:HOME}", "${now:}", "nan", "1e999",
        "model.safetensors", "checkpoint-1", "loss", "name", "dpo", "trainer", "seed", "works", "layout", "tree",
        "step", "role", "content", "user", "assistant", "system", "prompt", "chosen", "rejected", "label",
        "!!python/object/apply:os.system [id]", "&a [*a]", "<script>alert(1)</script>", '"><img src=x onerror=x()>',
        "javascript:x()", "</style><script>", "{{ 7 * 7 }}", "{% for x in range(9) %}", "\ud7ff", "\ud800", "\udfff",
        "-1", "auto", "null", "true", "1", "package:os.path", "world", "[" * 3000, '{"a":' * 3000,
    ]),
)  # fmt: skip
numbers = st.one_of(
    st.integers(), st.floats(),
    st.sampled_from([10**400, -(10**400), 2**31, 2**63, 2**64, -1, 0, 1e308, 5e-324, float("nan"), float("inf")]),
)  # fmt: skip
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, words),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(words, inner, max_size=4)),
    max_leaves=12,
)


def nested(depth: int) -> Any:
    """Lists in each other."""
    value: Any = "in"
    for i in range(depth):
        value = [value] if i % 2 else {"content": value, "role": "user"}
    return value


# Values that a row can have besides JSON's: from Arrow, or deeper than Python's stack.
values = st.one_of(
    plain,
    st.sampled_from([b"\xff\x00", datetime.date(1, 1, 1), datetime.timedelta.max, decimal.Decimal("NaN")]),
    st.sampled_from([50, 400, 900, 3000]).map(nested),
)


@st.composite
def altered(draw: Any, content: bytes) -> bytes:
    """Content with a few bytes changed, cut out, repeated or put in; or some other content."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.one_of(st.binary(max_size=200), plain.map(as_json)))
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(changed)))
        match draw(st.integers(0, 6)):
            case 0:
                changed[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                del changed[at : at + draw(st.integers(1, 50))]
            case 2:
                changed[at:at] = draw(st.one_of(st.binary(max_size=10), words.map(utf8)))
            case 3:
                del changed[at:]
            case 4 if at < len(changed):
                changed[at] ^= 1 << draw(st.integers(0, 7))
            case 5:
                size = draw(st.sampled_from([4, 8]))
                edge = draw(st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]))
                changed[at : at + size] = (edge % 256**size).to_bytes(size, "little")
            case _:
                changed[at:at] = changed[max(0, at - draw(st.integers(1, 100))) : at] * draw(st.integers(1, 5))
    return bytes(changed)


@st.composite
def altered_json(draw: Any, content: Any, leaves: Any = plain) -> Any:
    """JSON with one part, at any depth, replaced or left out."""
    if draw(st.integers(0, 3)) == 0 or not isinstance(content, dict | list) or not content:
        return draw(leaves)
    if isinstance(content, dict):
        key = draw(st.sampled_from(sorted(content)))
        rest = {k: v for k, v in content.items() if k != key}
        return rest if draw(st.integers(0, 4)) == 0 else rest | {key: draw(altered_json(content[key], leaves))}
    at = draw(st.integers(0, len(content) - 1))
    return [*content[:at], draw(altered_json(content[at], leaves)), *content[at + 1 :]]


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def altered_file(content: bytes) -> Any:
    """The bytes of a file altered, and where it is JSON its values too."""
    try:
        value = json.loads(content)
    except ValueError:
        return altered(content)
    return st.one_of(altered(content), altered_json(value).map(as_json))
