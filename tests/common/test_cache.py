"""Folders of the cache: one process makes them, whole or not at all. Its JSON files are checked when they are read."""

from __future__ import annotations

import errno
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from prefopt.common.cache import cached_folder, cached_json
from prefopt.errors import PrefoptError


def test_others_wait_for_the_one_that_makes_it(tmp_path: Path) -> None:
    begun, go_on, made = Event(), Event(), []

    def make(folder: Path) -> None:
        made.append(folder)
        begun.set()
        assert go_on.wait(60)
        (folder / "file").write_text("whole")

    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(cached_folder, tmp_path / "folder", make)
        assert begun.wait(60)
        others = [threads.submit(cached_folder, tmp_path / "folder", make) for _ in range(3)]
        assert not any(other.done() for other in others)
        go_on.set()
        assert {task.result(60) for task in [first, *others]} == {tmp_path / "folder"}
    assert len(made) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_another_makes_what_a_failure_left_undone(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "file").write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        cached_folder(tmp_path / "folder", fail)
    assert not list(tmp_path.iterdir())
    cached_folder(tmp_path / "folder", lambda folder: (folder / "file").touch())
    assert (tmp_path / "folder" / "file").exists()


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f"tmp-other-u-{dead.pid}@{platform.node()}").mkdir()
    (tmp_path / "folder.lock").write_text(f"process {dead.pid} on {platform.node()}")
    cached_folder(tmp_path / "folder", lambda folder: None)
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_with_its_folder(tmp_path: Path, code: int) -> None:
    def fill_up(folder: Path) -> None:
        raise OSError(code, "No space")  # from a write: without a name

    with pytest.raises(
        PrefoptError, match=r"could not write .*folder: .*No space; free some space.*PREFOPT_CACHE"
    ) as e:
        cached_folder(tmp_path / "folder", fill_up)
    assert e.value.exit_code == 1
    assert not list(tmp_path.iterdir())


def test_other_errors_do_not_speak_of_space(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        cached_folder(tmp_path / "folder", fail)


@pytest.mark.parametrize("kept", ['{"a": 1}', '{"b": 1}', "[1]", "{", None])
def test_a_json_file_is_made_where_it_is_not_whole(kept: str | None, tmp_path: Path) -> None:
    file, made = tmp_path / "folder" / "file.json", []

    def make() -> dict[str, int]:
        made.append(1)
        return {"a": 2}

    if kept is not None:
        file.parent.mkdir()
        file.write_text(kept)
    found = cached_json(file, make, lambda value: bool(value["a"]))
    whole = kept == '{"a": 1}'
    assert (found, len(made)) == (({"a": 1}, 0) if whole else ({"a": 2}, 1))
    assert cached_json(file, make, lambda value: True) == found
    assert [path.name for path in file.parent.iterdir()] == ["file.json"]


def test_a_json_file_that_cannot_be_written_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert cached_json(tmp_path / "file" / "in.json", lambda: [1], lambda value: True) == [1]
