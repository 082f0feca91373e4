"""Whether a folder still holds what was written into it: a SHA-256 and a size for every file, kept beside them."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prefopt.errors import TrainingError

CHECKSUMS = "checksums.json"
# Of a folder that is not as it was written; any other error of the system is the disk's or the permissions'.
DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)


def files_of(folder: Path) -> list[str]:
    """Every file but the checksums themselves, by its path from the folder, in alphabetical order."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != CHECKSUMS)


def checksums(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """`{"sha256": hex digits, "bytes": size}` of some files; each is read once, a block at a time."""
    facts = {}
    for name in names:
        with (folder / name).open("rb") as file:
            facts[name] = {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": file.tell()}
    return facts


def write_checksums(folder: Path, facts: dict[str, dict[str, Any]], **about: Any) -> None:
    """Keep what `checksums` found, and facts of the whole folder beside them."""
    (folder / CHECKSUMS).write_text(json.dumps({**about, "files": facts}, indent=1, sort_keys=True))


def wrong_with(folder: Path) -> str | None:
    """What is wrong with a folder, as a phrase for people, or None: every file is there, whole and unaltered.

    Raises:
        TrainingError: it cannot be read now, which says nothing about what it holds.
    """
    try:
        kept = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        facts = {str(name): (str(fact["sha256"]), int(fact["bytes"])) for name, fact in kept["files"].items()}
    except FileNotFoundError:
        return f"it has no {CHECKSUMS}"
    except OSError as error:
        if error.errno not in DAMAGE:
            raise _unread(folder, error) from error
        return f"its {CHECKSUMS} cannot be read ({type(error).__name__})"
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        return f"its {CHECKSUMS} cannot be read ({type(error).__name__})"
    try:
        there = set(files_of(folder))  # a name that points out of the folder is not among them
        for name, (digest, size) in sorted(facts.items()):
            if name not in there:
                return f"{name} is missing"
            if (now := (folder / name).stat().st_size) != size:
                return f"{name} has {now:,} bytes where {size:,} were written"
            if checksums(folder, [name])[name]["sha256"] != digest:
                return f"{name} was altered"
    except OSError as error:
        if error.errno not in DAMAGE:
            raise _unread(folder, error) from error
        return f"it cannot be read ({error})"
    return None


def _unread(folder: Path, error: OSError) -> TrainingError:
    return TrainingError(f"{folder} cannot be read ({error}): nothing was changed; look at its disk and permissions, "
                         "and start again")  # fmt: skip


def about(folder: Path) -> dict[str, Any]:
    """The facts of the whole folder that `write_checksums` kept; of one that `wrong_with` found nothing wrong with."""
    kept: dict[str, Any] = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    return kept
