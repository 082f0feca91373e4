"""Looks up LLaMA-Factory's names of data sets in its `dataset_info.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefopt.data.fields import ROLES
from prefopt.errors import first_line
from prefopt.migrate.translation import Translation

NAME = "dataset_info.json"
# Its name of a column -> the names that prefopt recognises; the first is given where the file has another one.
COLUMNS = {
    "prompt": ("instruction", "prompt", "question", "query", "problem"),
    "query": ("input",),
    "response": ("output", "completion"),
    "messages": ("conversations", "messages"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "kto_tag": ("kto_tag", "label"),
    "system": ("system", "system_prompt"),
    "tools": ("tools", "functions"),
    "history": ("history",),
    "images": ("images", "image"),
}
UNREAD = ("videos", "audios")
TOWER = ("images: LLaMA-Factory leaves the vision tower and its projector as they are, unless freeze_vision_tower and "
         "freeze_multi_modal_projector are false; here they are trained, too")  # fmt: skip
SPEAKERS, SPOKEN = ("from", "role"), ("value", "content", "text")
ROLE_TAGS = ("user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag")


def sources(t: Translation, names: list[str], directory: str, folder: Path) -> list[dict[str, Any]]:
    """Return the data sets of these names as values of `data.mixture`; what cannot be found has the path `???`.

    Args:
        t: records what has no equivalent.
        names: as in the option `dataset`.
        directory: the option `dataset_dir`.
        folder: of the YAML file; the directory is looked for in it, above it, and in the working directory.
    """
    if directory == "ONLINE":
        return [{"path": name} for name in names]
    places = [Path(directory), *(place / directory for place in (folder.absolute(), *folder.absolute().parents))]
    home = next((place for place in places if (place / NAME).is_file()), Path(directory))
    try:
        entries = json.loads((home / NAME).read_text())
    except (OSError, ValueError) as error:
        for name in names:
            t.no_equal[f"dataset: {name}"] = f"{home / NAME} cannot be read ({first_line(error)}): give data.path"
        return [{"path": "???"} for _ in names]
    return [_source(t, name, entries, home) for name in names]


def _source(t: Translation, name: str, entries: Any, home: Path) -> dict[str, Any]:
    entry = entries.get(name) if isinstance(entries, dict) else None
    if not isinstance(entry, dict):
        t.no_equal[f"dataset: {name}"] = f"not in {home / NAME}: give data.path"
        return {"path": "???"}
    found = {"path": _path(t, name, entry, home), "subset": entry.get("subset"), "split": entry.get("split")}
    if "file_name" in entry and found["split"] is not None:
        t.no_equal[f"split of {name}"] = f"{found.pop('split')}: a file has no splits"
    for key, why in (("num_samples", "all of its records are used: cut the file, or weight it in data.mixture"),
                     ("folder", "a folder within the hub's set: give its files as data.path")):  # fmt: skip
        if entry.get(key):
            t.no_equal[f"{key} of {name}"] = why
    found["fields"] = _fields(t, name, entry.get("columns") or {})
    _check_tags(t, name, entry.get("tags") or {})
    return {key: value for key, value in found.items() if value}


def _path(t: Translation, name: str, entry: dict[str, Any], home: Path) -> str:
    if hub := entry.get("hf_hub_url"):
        return str(hub)
    if "file_name" in entry:
        return str(home / entry["file_name"])
    where = next((key for key in ("ms_hub_url", "om_hub_url", "script_url", "cloud_file_name") if key in entry), "???")
    t.no_equal[f"dataset: {name}"] = f"{where} {entry.get(where)}: only files and the Hugging Face hub are read"
    return "???"


def _fields(t: Translation, name: str, columns: dict[str, str]) -> dict[str, str]:
    """Return `data.fields`: our column -> the file's, where prefopt would not recognise the file's."""
    fields = {}
    for key, column in columns.items():
        if key in UNREAD:
            t.no_equal[f"{key} of {name}"] = "videos and sound are not offered: prompts have texts and images"
        elif key not in COLUMNS:
            t.no_equal[f"{key} of {name}"] = f"not a known column of {NAME}"
        elif column and column not in COLUMNS[key]:
            fields[COLUMNS[key][0]] = column
    if "images" in columns and t.given.get("freeze_vision_tower") is not False and TOWER not in t.differs:
        t.differs.append(TOWER)
    return fields


def _check_tags(t: Translation, name: str, tags: dict[str, str]) -> None:
    """Record the tags of turns that prefopt does not recognise: it knows the usual ones by their names."""
    for key, tag in tags.items():
        known = SPEAKERS if key == "role_tag" else SPOKEN if key == "content_tag" else ROLES if key in ROLE_TAGS else ()
        if tag not in known:
            t.no_equal[f"{key} of {name}"] = (
                f"{tag!r} is not recognised: write {', '.join(list(known)[:3])} in the file"
            )
