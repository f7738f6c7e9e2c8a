"""A program of ours in a process of its own, which answers each line of JSON with another.

For work that may take any amount of time, memory or stack, and that no check foresees: what goes
past the program's limits costs its own process, and never this one. Which limits those are, the
program says; here is how it is started, asked and ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


# What a program cannot do to itself: the system's for memory, or an operator's.
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a process ended that gave no answer."""

    status: int  # its exit status; below 0 the number of the signal that ended it
    is_late: bool  # it was ended, as its answer did not come in time

    @property
    def was_from_outside(self) -> bool:
        """Whether somebody else ended it, who is not us."""
        return not self.is_late and -self.status in _FROM_OUTSIDE

    @property
    def signal_name(self) -> str:
        """Name the signal that ended it."""
        return signal.Signals(-self.status).name

    @property
    def words(self) -> str:
        """Say how it ended, as a part of a sentence."""
        if self.is_late:
            return "its answer did not come in time"
        if self.status == -signal.SIGPROF:
            return "it used up its processor time"
        if self.was_from_outside:
            return f"it was ended from outside by {self.signal_name}"
        return f"its process ended with status {self.status}"


class LineProcess:
    """The process; one thread at a time may ask it. It ends with this object, or this process."""

    def __init__(
        self, program: Path, *, wall_s: float, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start a program that imports nothing of ours.

        wall_s: how long an answer may take; the program itself bounds its processor time.
        """
        self._wall_s = wall_s
        self._process = subprocess.Popen(
            # Isolated: environment, working directory and the user's packages don't count.
            [sys.executable, "-I", "-B", str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(environment or {}),
            # Ctrl-C in a terminal is for the server, which ends this process in its own time.
            start_new_session=True,
        )
        self._is_late = False  # with an answer, so that it is to be ended
        self.stop = weakref.finalize(self, _end, self._process)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """Send one line and wait for the answer; None if the process ended instead."""
        requests, answers = _pipes(self._process)
        try:
            requests.write(_encode(request) + b"\n")
            requests.flush()
        except BrokenPipeError:
            return None
        deadline = time.monotonic() + self._wall_s
        line = _read_line(answers, deadline=deadline)
        if line is None:
            self._is_late = time.monotonic() >= deadline
            return None
        return _decode(line)

    def end(self) -> Ending:
        """Make sure the process has ended; return how it did."""
        self.stop()
        return Ending(self._process.returncode, is_late=self._is_late)


def _encode(request: Mapping[str, Any]) -> bytes:
    """Write a line of JSON; by msgspec, as `json` keeps Python's lock for 0.04 s for 4 MB."""
    try:
        return msgspec.json.encode(request)
    except UnicodeEncodeError:  # a lone surrogate, of the tokenizer's own pieces
        return json.dumps(request).encode()


def _decode(line: bytes) -> dict[str, Any]:
    answer: dict[str, Any]
    try:
        answer = msgspec.json.decode(line)
    except msgspec.DecodeError:  # a lone surrogate that the program wrote
        answer = json.loads(line)
    return answer


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process, with those that it started, and leave nothing open."""
    requests, answers = _pipes(process)
    with contextlib.suppress(BrokenPipeError):  # an unfinished request that nobody reads
        requests.close()
    answers.close()
    # A process that has ended by itself keeps its own status.
    try:
        process.wait(timeout=0.1)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):  # it leads a group of its own
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    if process.stdin is None or process.stdout is None:
        raise ValueError("the process was started without pipes")
    return process.stdin, process.stdout


def _read_line(answers: IO[bytes], *, deadline: float) -> bytes | None:
    """Read up to a newline; None if the stream ends or the time is up before one."""
    poll = select.poll()  # unlike select(), also for descriptors above 1023
    poll.register(answers, select.POLLIN)
    line = bytearray()
    while not line.endswith(b"\n"):
        left_ms = (deadline - time.monotonic()) * 1000
        if left_ms <= 0 or not poll.poll(left_ms):
            return None
        piece = os.read(answers.fileno(), 1 << 16)
        if not piece:
            return None
        line += piece
    return bytes(line)
