"""Files and folders that are whole or absent."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prefopt.common import files
from prefopt.common.cache import cached_folder
from prefopt.common.files import (
    ABANDONED_SECONDS,
    make_folder,
    new_folder,
    open_to_append,
    remove_leftovers,
    write_json,
    write_lines,
    write_link,
    write_text,
)


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o640)
    write_text(path, "new ü")
    assert path.read_text(encoding="utf-8") == "new ü"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_symbolic_link_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "file").symlink_to(tmp_path / "target")
    write_text(tmp_path / "file", "new")
    assert (tmp_path / "target").read_text() == "precious"
    assert (tmp_path / "file").read_text() == "new"


def test_what_cannot_be_encoded_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_json_is_written_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "s3cret-value")
    write_json(tmp_path / "a.json", {"key s3cret-value": 1})
    write_lines(tmp_path / "b.jsonl", [{"x": "s3cret-value"}, {"y": 2}])
    assert json.loads((tmp_path / "a.json").read_text()) == {"key [hidden]": 1}
    assert (tmp_path / "b.jsonl").read_text() == '{"x": "[hidden]"}\n{"y": 2}\n'


def test_a_link_is_moved_to_another_target(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_link(tmp_path / "last", tmp_path / name)
    assert os.readlink(tmp_path / "last") == "two"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last", "one", "two"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a" / "folder"

    def fail() -> None:
        with new_folder(target) as temporary:
            (temporary / "file").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(target.parent.iterdir()) == []
    with new_folder(target) as temporary:
        (temporary / "file").write_text("whole")
        assert not target.exists()
    assert (target / "file").read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def write_folder(target: Path, text: str, *, replace: bool = False) -> None:
    with new_folder(target, replace=replace) as temporary:
        (temporary / "file").write_text(text)


def test_a_folder_that_is_there_already_is_replaced_on_request_only(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    write_folder(target, "first")
    with pytest.raises(OSError, match="not empty"):
        write_folder(target, "second")
    assert (target / "file").read_text() == "first"
    write_folder(target, "third", replace=True)
    assert (target / "file").read_text() == "third"
    assert list(tmp_path.iterdir()) == [target]


def test_content_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    flush, rename = files.flush, Path.rename

    def flushed(path: Path) -> None:
        events.append("temporary" if path.name.startswith("tmp-") else path.name)
        flush(path)

    def renamed(path: Path, target: Path) -> Path:
        events.append("rename")
        return rename(path, target)

    monkeypatch.setattr(files, "flush", flushed)
    monkeypatch.setattr(Path, "rename", renamed)
    with new_folder(tmp_path / "folder") as temporary:
        (temporary / "file").write_text("content")
    assert events == ["file", "temporary", "rename", tmp_path.name, tmp_path.parent.name]


def test_a_cached_folder_is_made_once(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "file").write_text("x")

    assert cached_folder(tmp_path / "folder", make) == cached_folder(tmp_path / "folder", make) == tmp_path / "folder"
    assert len(made) == 1


def test_the_first_of_two_makers_of_a_cached_folder_wins(tmp_path: Path) -> None:
    folder = tmp_path / "folder"

    def make(temporary: Path) -> None:
        (temporary / "file").write_text("slow")
        if not folder.exists():
            write_folder(folder, "fast")

    cached_folder(folder, make)
    assert (folder / "file").read_text() == "fast"
    assert list(tmp_path.iterdir()) == [folder]


def test_leftovers_of_killed_processes_go_and_those_of_others_stay(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here = platform.node()
    stay = [f"tmp-k-u-{os.getpid()}@{here}", "tmp-k-u-1@elsewhere", f"tmp-k-u-{10**30}@{here}", "tmp-x", "other"]
    for name in (*stay, f"tmp-k-u-{dead.pid}@{here}", "tmp-k-u-2@elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / f"tmp-file-u-{dead.pid}@{here}").write_text("half")
    old = time.time() - ABANDONED_SECONDS - 60
    os.utime(tmp_path / "tmp-k-u-2@elsewhere", (old, old))
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(stay)


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.mkdir()
    run.mkdir()
    (victim / "file").write_text("precious")
    for name in ("tmp-fixed", "tmp-old-target", "target"):
        (run / name).symlink_to(victim)
    (run / "lines").symlink_to(victim / "file")
    (run / "new").symlink_to(victim / "absent")
    for name in ("lines", "new"):
        with pytest.raises(OSError, match="symbolic link"):
            open_to_append(run / name)
    with pytest.raises(OSError, match="symbolic link"):
        make_folder(run / "target")
    with new_folder(run / "target", replace=True, temporary=run / "tmp-fixed") as folder:
        (folder / "file").write_text("whole")
    assert (run / "target" / "file").read_text() == "whole"
    assert sorted(p.name for p in run.iterdir()) == ["lines", "new", "target"]
    assert [p.name for p in victim.iterdir()] == ["file"]
    assert (victim / "file").read_text() == "precious"
