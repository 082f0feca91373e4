"""Errors that are the machine's, told from those of a file or a model."""

from __future__ import annotations

import errno

import pytest

from prefopt.errors import disk_full, out_of_memory


def caused(by: BaseException) -> Exception:
    try:
        raise RuntimeError("cannot load") from by
    except RuntimeError as error:
        return error


FULL = [
    OSError(errno.ENOSPC, "x"),
    OSError(errno.EDQUOT, "x"),
    RuntimeError('Error while serializing: IoError(Os { code: 28, message: "No space left on device" })'),
    RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0"),
    caused(OSError(errno.ENOSPC, "x")),
]
SHORT = [
    MemoryError(),
    OSError(errno.ENOMEM, "x"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes. Error code 12"),
    ImportError("libtorch.so: failed to map segment from shared object"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    caused(MemoryError()),
]
NEITHER = [
    OSError(errno.EACCES, "x"),
    OSError(errno.EIO, "x"),
    OSError(errno.EFBIG, "x"),
    ValueError("x"),
    OSError("x"),
]


@pytest.mark.parametrize("error", [*FULL, *SHORT, *NEITHER], ids=repr)
def test_what_the_machine_lacks(error: Exception) -> None:
    assert disk_full(error) == (error in FULL)
    assert out_of_memory(error) == (error in SHORT)
