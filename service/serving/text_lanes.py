"""Runs work on texts beside the event loop: in two lanes, so that short texts pass long ones.

A tokenizer has few texts under way at once (`service.text.encoding`), first come first served, so a
few long ones would make every other wait for seconds. So long ones have fewer threads than a
tokenizer has turns: however many come, a turn is left for short ones. What waits here waits in a
queue and holds no thread; where many wait, no more are taken, whatever they are wanted for. None of
the threads are the event loop's default ones, in which files are read.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from engine.errors import QueueFullError
from service.text.encoding import MAX_AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")

MAX_WAITING_SHORT = 4096  # texts, those under way included
MAX_WAITING_LONG = 128
MAX_WAITING_FORMS = 256
MAX_FORMS_AT_ONCE = 16
RETRY_AFTER_S = 5.0  # a long text takes about a second

# Tokenizers take 0.06 to 0.2 s for so many characters (2026-11), as long as a short text may wait.
MAX_SHORT = 64 * 1024


class TextLane:
    """Threads for texts, and how many texts wait for one; asked from one event loop at a time."""

    def __init__(self, name: str, num_threads: int | None, max_waiting: int) -> None:
        self.num_waiting = 0  # those under way included
        self.max_waiting = max_waiting
        # They start when they are first needed.
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix=name)

    async def run(self, work: Callable[[], Result]) -> Result:
        """Return what `work` returns. Raises QueueFullError where too many wait."""
        if self.num_waiting >= self.max_waiting:
            raise QueueFullError(
                f"{self.num_waiting} texts wait to be read, at most {self.max_waiting} may",
                retry_after_s=RETRY_AFTER_S,
            )
        self.num_waiting += 1
        # An executor keeps what was cancelled until a thread is free: let that be an empty list,
        # not the text.
        waiting = [work]
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, lambda: waiting.pop()()
            )
        finally:
            waiting.clear()
            self.num_waiting -= 1


short_texts = TextLane("short-text", None, MAX_WAITING_SHORT)
long_texts = TextLane("long-text", MAX_AT_ONCE - 1, MAX_WAITING_LONG)
# Their threads wait for other processes; some of them, that others be done (`grammars.reading`).
forms = TextLane("forms", MAX_FORMS_AT_ONCE, MAX_WAITING_FORMS)


async def run_in_lane(size: int, work: Callable[[], Result]) -> Result:
    """Return what `work` returns; size: characters or tokens that it reads.

    Work that has not begun when nobody waits for it any more is dropped. Raises QueueFullError
    where too many texts wait, and what `work` raises.
    """
    return await (short_texts if size <= MAX_SHORT else long_texts).run(work)
