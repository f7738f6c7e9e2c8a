"""A terminal that a test types into: a process behind a pseudo-terminal of its own."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil

from tests.service.fakes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LIMIT_S = 60
CTRL_D, ARROW_UP = "\x04", "\x1b[A"
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|[\x01\x02\x07]")
# The child's own first act, as forking with threads beside it is not to be done in a test.
_PROGRAM = (
    "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    "from service.cli import main; main()"
)


class TypedTerminal:
    """What a person at a terminal does: type, and read what is there."""

    def __init__(self, descriptor: int, process: subprocess.Popen[bytes]) -> None:
        self._descriptor = descriptor
        self._process = process
        self.raw = b""  # all that ever came
        self._num_seen = 0  # characters of it, without escape sequences, that were waited for

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C, once the process waits for a key or an answer.

        Python sees the signal only with the next key where it comes while a key is dealt with.
        """
        waiting = psutil.Process(self._process.pid)
        wait_until(lambda: waiting.status() == psutil.STATUS_SLEEPING)
        self.type("\x03")

    def wait_for(self, text: str) -> str:
        """Read until a text has come; return what came up to its end, without escape sequences."""
        deadline = time.monotonic() + LIMIT_S
        while text not in (shown := self._shown()):
            if not self._read(deadline - time.monotonic()):
                raise AssertionError(f"{text!r} never came: {shown!r}")
        shown = shown[: shown.index(text) + len(text)]
        self._num_seen += len(shown)
        return shown

    def wait_for_end(self) -> int:
        """Read to the end; return the exit code."""
        deadline = time.monotonic() + LIMIT_S
        while self._read(deadline - time.monotonic()):
            pass
        return self._process.wait(LIMIT_S)

    def _shown(self) -> str:
        shown = _ESCAPES.sub("", self.raw.decode("utf-8", "replace")).replace("\r", "")
        return shown[self._num_seen :]

    def _read(self, limit_s: float) -> bool:
        if limit_s <= 0 or not select.select([self._descriptor], [], [], limit_s)[0]:
            return False
        try:
            piece = os.read(self._descriptor, 65536)
        except OSError:  # as Linux says that nobody has the other side open
            return False
        self.raw += piece
        return bool(piece)


@contextmanager
def typed_terminal(*arguments: str, environment: Mapping[str, str]) -> Iterator[TypedTerminal]:
    """Run `tetrad` in a terminal for as long as the block runs."""
    outer, inner = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *arguments],
        stdin=inner, stdout=inner, stderr=inner, start_new_session=True,
        env={"PATH": os.environ["PATH"], "TERM": "xterm", "LANG": "C.UTF-8", **environment},
    )  # fmt: skip
    os.close(inner)
    try:
        yield TypedTerminal(outer, process)
    finally:
        process.kill()
        process.wait()
        os.close(outer)
