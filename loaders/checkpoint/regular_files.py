"""Opens files that came from others: regular ones only, and no more of them than asked for.

A pipe would be waited for without end, a device be read without end; neither holds a checkpoint or
settings. Libraries that open files by themselves get folders whose files were looked at before
(`loaders.repository.links`).
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, BinaryIO

from loaders.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

_KINDS = {
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read; links are followed. Raises CheckpointError for all but regular files.

    Looked at before, as opening a device can have effects, and once more when it is open, as it
    may have been replaced; without waiting for who writes to a pipe.
    """
    try:
        check_regular(path)
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    file = os.fdopen(handle, "rb")
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        file.close()
        raise CheckpointError(f"cannot read {path}: it was replaced while it was opened")
    return file


def check_regular(path: Path) -> None:
    """Raise CheckpointError for a pipe, device, socket or folder, OSError where nothing is."""
    if kind := irregular_kind(path):
        raise CheckpointError(f"{path} is {kind}; a regular file was expected")


def irregular_kind(path: Path) -> str | None:
    """Say what lies there where it is no regular file, links followed. Raises OSError."""
    mode = path.stat().st_mode
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no regular file")


def read_regular(path: Path, *, most: int) -> bytes:
    """Read a whole file of at most `most` bytes. Raises CheckpointError for a larger one."""
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise CheckpointError(f"{path.name} is larger than {most} bytes; it is no settings file")
    return content
