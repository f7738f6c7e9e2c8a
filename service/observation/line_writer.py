"""Writes log lines from a thread of its own, so that nobody waits for whoever reads them.

A pipe that is full, a terminal that was stopped or a slow disk holds up the thread alone. Lines
wait in a bounded queue; those beyond it are dropped and counted.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from typing import TextIO

MAX_WAITING = 10_000  # lines; a few MB
_LINES_A_WRITE = 200
# Between two writes. Woken by each line of a crowd's refusals, the thread took Python's lock from
# the event loop so often that a refusal took twice as long (2026-11).
_REST_S = 0.02


class LineWriter:
    """Writes lines in the order in which they come."""

    def __init__(self, stream: TextIO, *, max_waiting: int = MAX_WAITING) -> None:
        self.num_dropped = 0
        self._stream = stream
        self._max_waiting = max_waiting
        self._lines: queue.SimpleQueue[str | threading.Event] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def write(self, line: str) -> None:
        """Have a line written soon; return at once, and raise nothing."""
        if self._lines.qsize() >= self._max_waiting:
            self.num_dropped += 1
            return
        self._lines.put(line)
        if self._thread is None:
            self._start()

    def flush(self, limit_s: float) -> None:
        """Wait until what has come so far is written, at most so long."""
        if self._thread is not None:
            written = threading.Event()
            self._lines.put(written)
            written.wait(limit_s)

    def _start(self) -> None:
        """Begin with the first line: a process may fork before."""
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            batch = [self._lines.get()]
            with contextlib.suppress(queue.Empty):
                while len(batch) < _LINES_A_WRITE:
                    batch.append(self._lines.get_nowait())
            text = "".join(f"{line}\n" for line in batch if isinstance(line, str))
            # A full disk or a closed pipe must not end the log for good: either may recover.
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(text)
                self._stream.flush()
            for line in batch:
                if isinstance(line, threading.Event):
                    line.set()
            if len(batch) < _LINES_A_WRITE:
                time.sleep(_REST_S)
