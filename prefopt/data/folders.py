"""Decides which files of a folder are read, and counts the others with the reason."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from prefopt.data.data_config import Source
from prefopt.data.formats import FORMATS, is_data
from prefopt.errors import UserError, first_line

SPLIT = re.compile(
    r"(?:^|[-._ /0-9])(train(?:ing)?|test(?:ing)?|validation|valid|val|dev|eval(?:uation)?)(?=$|[-._ /0-9])"
)
SPLITS = {"training": "train", "testing": "test", "valid": "validation", "val": "validation", "dev": "validation",
          "eval": "test", "evaluation": "test"}  # fmt: skip
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")  # as the hub names the files of a split
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
WHOLE = "default"  # the hub's name for the only configuration of a set
SHOWN_FILES = 20  # of those that are not read for one reason


@dataclass(frozen=True)
class Listing:
    """The files of a folder to read, each with its name there, and counts of all files by what becomes of them."""

    files: list[tuple[Path, str]]
    counts: dict[str, int]


def list_folder(folder: Path, source: Source) -> Listing:
    """The data files of a folder in the order of their names, those of a split, or a set saved by `datasets`.

    Raises:
        UserError: no data file, or it is not clear which of them to read.
    """
    if source.subset and (folder / source.subset).is_dir():
        folder = _inside(folder, source.subset)
    elif source.subset not in (None, WHOLE):
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        raise UserError(f"{folder} has no folder {source.subset!r} for data.subset; it has {names}")
    if (folder / "dataset_dict.json").is_file():
        names = _listed(folder / "dataset_dict.json", "splits")
        split = choose_split(names, source)
        others = {f"split {name}, data.split={name} reads it": [name] for name in names if name != split}
        return _saved(_inside(folder, split), folder, others)
    if (folder / "state.json").is_file():
        if source.split:
            raise UserError(f"{folder} has no splits; set data.split=null")
        return _saved(folder, folder, {})
    return _plain(folder, source)


def _saved(folder: Path, root: Path, splits: dict[str, list[str]]) -> Listing:
    """The files that a saved set or split lists; `splits` are those that are not read, by reason."""
    if not (folder / "state.json").is_file():
        return _plain(folder, Source(path=str(folder)), splits)
    files = [(_inside(folder, name), name) for name in _listed(folder / "state.json", "_data_files", "filename")]
    unread: dict[str, list[str]] = defaultdict(list, splits)
    known = {path for path, _ in files}
    elsewhere = tuple(f"{name}/" for names in splits.values() for name in names)
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        reason = _why_not(path, root) or ("" if path.is_dir() else "not in the list of the saved set")
        if reason and path not in known and path.name not in DESCRIPTIONS and not f"{name}/".startswith(elsewhere):
            unread[reason].append(name)
    return Listing(files, _counts(files, unread))


def _plain(folder: Path, source: Source, others: dict[str, list[str]] | None = None) -> Listing:
    unread: dict[str, list[str]] = defaultdict(list, others or {})
    found: dict[str | None, list[tuple[Path, str]]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if reason := _why_not(path, folder):
            unread[reason].append(name)
        elif not path.is_dir():
            found[_split_named(name)].append((path, name))
    if not found:
        raise UserError(f"{folder} holds no data file ({', '.join(FORMATS)}){_first(unread)}")
    if None in found and len(found) > 1:
        named = next(files[0][1] for split, files in found.items() if split)
        raise UserError(
            f"{folder} has {named}, whose name is that of a split, and {found[None][0][1]}, whose name is none: give "
            "the file to train on as data.path (and data.eval_path), or several as data.mixture"
        )
    if None in found:
        if source.split:
            raise UserError(f"no file of {folder} is named after a split; set data.split=null")
        return Listing(found[None], _counts(found[None], unread))
    splits = {str(split): files for split, files in found.items()}
    chosen = choose_split(list(splits), source)
    for split, files in splits.items():
        if split != chosen:
            unread[f"split {split}, data.eval_split={split} holds it out"] += [name for _, name in files]
    return Listing(splits[chosen], _counts(splits[chosen], unread))


def _split_named(name: str) -> str | None:
    """The split that a file's name says, as the hub writes it (train_prefs-00000-of-00002) or in other ways."""
    stem = re.sub(r"(\.\w+)+$", "", name.lower())
    found = SPLIT.search(stem)
    if found and (shard := SHARD.fullmatch(stem.rpartition("/")[2])) and SPLIT.search(shard[1]):
        return SPLITS.get(shard[1], shard[1])
    return SPLITS.get(found[1], found[1]) if found else None


def _why_not(path: Path, folder: Path) -> str:
    """Why a file is not read; nothing for data files and plain folders."""
    if path.is_symlink() and not path.exists():
        return "a link to nothing"
    if path.is_symlink() and path.is_dir():
        return "a link to a folder, which is not followed"
    if path.is_dir():
        return ""
    if any(part.startswith(".") for part in path.relative_to(folder).parts):
        return "hidden"
    if not path.is_file():
        return "no regular file"
    if path.name in DESCRIPTIONS:
        return "a description of a saved set by its name"
    return "" if is_data(path) else "no data format"


def _counts(files: list[tuple[Path, str]], unread: dict[str, list[str]]) -> dict[str, int]:
    counts = {"files": len(files)}
    for reason, names in unread.items():
        counts[f"unread_files/{reason}: {_some(names)}"] = len(names)
    if len(files) > 1:
        counts[f"read_files/{_some([name for _, name in files])}"] = len(files)
    return counts


def _some(names: list[str]) -> str:
    more = f", … {len(names) - SHOWN_FILES} more" if len(names) > SHOWN_FILES else ""
    return f"{', '.join(names[:SHOWN_FILES])}{more}"


def _first(unread: dict[str, list[str]]) -> str:
    return "".join(f"; {names[0]}: {reason}" for reason, names in list(unread.items())[:3])


def choose_split(names: list[str], source: Source) -> str:
    """The split to read: the one asked for, `train`, or the only one.

    Raises:
        UserError: there is no such split, or several.
    """
    split = source.split or ("train" if "train" in names else names[0] if len(names) == 1 else None)
    if split not in names:
        raise UserError(f"{source.path} has the splits {names}; choose one with data.split=NAME")
    return split


def _listed(file: Path, key: str, name: str | None = None) -> list[str]:
    """The names that a file of a saved `datasets` set lists."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))[key]
        names = [entry if name is None else entry[name] for entry in entries]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{file} is not as `datasets` writes it ({first_line(error)[:200]}): save the set again"
        ) from error
    if not all(isinstance(one, str) for one in names):
        raise UserError(f"{file} must list names: save the set again")
    return names


def _inside(folder: Path, name: str) -> Path:
    """The path of `name`, which must lie in the folder.

    Raises:
        UserError: it does not exist, or lies elsewhere.
    """
    path = folder / name
    try:
        there = path.resolve(strict=True).is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # absent, an invalid name, a ring of links
        there = False
    if not there:
        raise UserError(f"{folder} names {name!r}, which is not in it: save the set again")
    return path
