"""Renders chat templates that nobody vouches for.

A template is a program that came with a checkpoint. Jinja's sandbox keeps it from attributes and
calls that would lead to files or the network. It runs in `template_worker`, a process without our
environment, with limits on text, memory, written files and processor time; one that goes past them
costs its own process, which the next text starts anew (about 0.1 s), and never this one.
Not covered: what a template writes is up to it; a checkpoint's template may put anything into
prompts.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from service.text.errors import InvalidMessagesError, TemplateFailedError

if TYPE_CHECKING:
    from collections.abc import Mapping

WORKER = Path(__file__).with_name("template_worker.py")
# Our Llama 2 template takes 0.2 ms with all that is around it, 27 ms for 2 047 messages (2026-11).
CPU_S = 2.0
# Only a stopped or starved machine gets here: the worker ends itself by CPU_S.
WALL_S = 60.0
# Templates add markers, dates and default system texts to what they are given, and some repeat it.
EXTRA_CHARS = 64 * 1024
CHARS_PER_CHAR = 4
MAX_WORDS = 150  # characters of a template's own, which may be the messages'


class TemplateSandbox:
    """One template in a process of its own; may be used from several threads, one at a time."""

    names: frozenset[str]  # of the variables that the template reads and does not set itself

    def __init__(self, source: str, *, cpu_s: float = CPU_S) -> None:
        """Start the process; raises TemplateFailedError if the template does not compile."""
        self._source = source
        self._cpu_s = cpu_s
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._worker, self.names = self._start()

    def render(self, variables: Mapping[str, Any], *, num_chars: int) -> str:
        """Render the template.

        variables: plain JSON values.
        num_chars: how much text they hold; the result may be `CHARS_PER_CHAR` times as long, and
        `EXTRA_CHARS` more.

        Raises InvalidMessagesError where the template refuses them by itself, TemplateFailedError
        where it breaks or goes past its limits.
        """
        max_chars = CHARS_PER_CHAR * num_chars + EXTRA_CHARS
        with self._lock:
            if self._worker is None:
                self._worker, _ = self._start()
            answer = self._ask(self._worker, variables=variables, max_chars=max_chars)
        return str(answer["text"])

    def close(self) -> None:
        """End the process; a later text would start it again."""
        with self._lock:
            if self._worker is not None:
                self._worker.stop()
            self._worker = None

    def _start(self) -> tuple[_Worker, frozenset[str]]:
        worker = _Worker()
        answer = self._ask(worker, source=self._source)
        return worker, frozenset(answer["names"])

    def _ask(self, worker: _Worker, **request: Any) -> dict[str, Any]:
        answer = worker.ask({**request, "cpu_s": self._cpu_s})
        if answer is None:
            self._worker = None
            raise TemplateFailedError(
                f"the chat template was stopped: {worker.end()} (allowed: {self._cpu_s:g} s); "
                "the checkpoint's template needs mending"
            )
        if "refused" in answer:
            raise InvalidMessagesError(
                f"the chat template refuses these messages: {answer['refused'][:MAX_WORDS]}"
            )
        if "failed" in answer:
            raise TemplateFailedError(f"the chat template failed: {answer['failed'][:MAX_WORDS]}")
        return answer


class _Worker:
    """The process, spoken to in lines of JSON."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            # Isolated: environment, working directory and the user's packages don't count.
            [sys.executable, "-I", "-B", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            # Ctrl-C in a terminal is for the server, which ends this process in its own time.
            start_new_session=True,
        )
        self.stop = weakref.finalize(self, _end, self._process)

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """Send one line and wait for the answer; None if the process ended instead."""
        requests, answers = _pipes(self._process)
        try:
            requests.write(_encode(request) + b"\n")
            requests.flush()
        except BrokenPipeError:
            return None
        line = _read_line(answers, deadline=time.monotonic() + WALL_S)
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
            return f"no answer within {WALL_S:.0f} s, or too little memory on this machine"
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
    except msgspec.DecodeError:  # a lone surrogate that the template wrote
        answer = json.loads(line)
    return answer


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and leave nothing open."""
    requests, answers = _pipes(process)
    with contextlib.suppress(BrokenPipeError):  # an unfinished request that nobody reads
        requests.close()
    answers.close()
    # A process that has ended by itself keeps its own status.
    try:
        process.wait(timeout=0.1)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    if process.stdin is None or process.stdout is None:
        raise TemplateFailedError("the template process was started without pipes")
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
