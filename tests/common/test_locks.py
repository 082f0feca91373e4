"""One process at a time."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from prefopt.common.locks import LOCK, locked, locked_folder
from prefopt.errors import UserError

HOLD = """
import multiprocessing, sys, time
from pathlib import Path
from prefopt.common.locks import locked_folder

def child():
    print("locked", flush=True)  # said by the child, which has by now run what it runs after a fork
    time.sleep(30)

with locked_folder(Path(sys.argv[1])):
    multiprocessing.get_context("fork").Process(target=child, daemon=True).start()
    time.sleep(600)
"""


def test_another_process_is_refused_by_name_until_the_first_is_killed(tmp_path: Path) -> None:
    """Its forked children, such as the workers of a data loader, outlive it and do not keep the lock."""
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=f"is in use by process {other.pid} on "), locked_folder(folder):
            pass
        other.kill()
        other.wait()
        other.stdout.close()
        with locked_folder(folder):
            (folder / "file").write_text("x")
    assert [p.name for p in folder.iterdir()] == ["file"], "the lock of the killed process was in nobody's way"


def test_a_second_run_of_the_same_process_is_refused(tmp_path: Path) -> None:
    with locked_folder(tmp_path / "run"):
        for _ in range(2):
            with pytest.raises(UserError, match="another run of this process"), locked_folder(tmp_path / "." / "run"):
                pass
        with locked_folder(tmp_path / "other"):
            pass
    with locked_folder(tmp_path / "run"):
        pass


def test_a_folder_that_nothing_was_written_into_is_removed(tmp_path: Path) -> None:
    with locked_folder(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK).exists()
    assert not (tmp_path / "run").exists()


def test_who_waits_gets_the_lock_next(tmp_path: Path) -> None:
    order: list[str] = []

    def wait() -> None:
        with locked(tmp_path / "lock", wait=True):
            order.append("second")

    with locked(tmp_path / "lock"):
        waiting = threading.Thread(target=wait)
        waiting.start()
        order.append("first")
    waiting.join(30)
    assert order == ["first", "second"]
    assert not (tmp_path / "lock").exists()


def test_a_lock_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic link"), locked_folder(tmp_path / "run"):
        pass
    assert (tmp_path / "victim").read_text() == "precious"
