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
from typing import IO, TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


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
        line = _read_line(answers, deadline=time.monotonic() + self._wall_s)
        if line is None:
            return None
        return _decode(line)

    def end(self) -> str:
        """Make sure the process has ended; give the reason as words."""
        self.stop()
        status = self._process.returncode
        if status == -signal.SIGPROF:
            return "it used up its processor time"
        if status == -signal.SIGKILL:
            return f"no answer within {self._wall_s:.0f} s, or too little memory on this machine"
        return f"its process ended with status {status}"


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
