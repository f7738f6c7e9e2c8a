"""Writes log lines from a thread of its own, so that nobody waits for whoever reads them.

A pipe that is full, a terminal that was stopped or a slow disk holds up the thread alone. Lines
wait in a bounded queue; those beyond it are dropped and counted, as are those that could not be
written. A bar that is drawn among the lines waits with them, the newest alone.
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
        self._stream = stream
        self._max_waiting = max_waiting
        # None stands where what is drawn comes among the lines.
        self._waiting: queue.SimpleQueue[str | threading.Event | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # held for moments, never while something is written
        self._drawing: str | None = None
        self._num_refused = 0  # counted by whoever writes
        self._num_lost = 0  # counted by the thread

    @property
    def num_dropped(self) -> int:
        """Lines that had no room, or that the stream did not take."""
        return self._num_refused + self._num_lost

    def write(self, line: str) -> None:
        """Have a line written soon; return at once, and raise nothing."""
        if self._waiting.qsize() >= self._max_waiting:
            with self._lock:
                self._num_refused += 1
            return
        self._put(line)

    def draw(self, text: str) -> None:
        """Have a text written soon as it is, in place of an earlier one that still waits."""
        with self._lock:
            waits, self._drawing = self._drawing is not None, text
        if not waits:
            self._put(None)

    def flush(self, limit_s: float) -> None:
        """Wait until what has come so far is written, at most so long."""
        if self._thread is not None:
            written = threading.Event()
            self._waiting.put(written)
            written.wait(limit_s)

    def _put(self, item: str | None) -> None:
        """Have something written; begin with the first: a process may fork before."""
        self._waiting.put(item)
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            batch = [self._waiting.get()]
            with contextlib.suppress(queue.Empty):
                while len(batch) < _LINES_A_WRITE:
                    batch.append(self._waiting.get_nowait())
            # A full disk or a closed pipe must not end the log for good: either may recover.
            try:
                self._stream.write("".join(map(self._text_of, batch)))
                self._stream.flush()
            except (OSError, ValueError):
                self._num_lost += sum(isinstance(item, str) for item in batch)
            for item in batch:
                if isinstance(item, threading.Event):
                    item.set()
            if len(batch) < _LINES_A_WRITE:
                time.sleep(_REST_S)

    def _text_of(self, item: str | threading.Event | None) -> str:
        if isinstance(item, str):
            return f"{item}\n"
        if item is not None:
            return ""
        with self._lock:
            drawing, self._drawing = self._drawing, None
        return drawing or ""
