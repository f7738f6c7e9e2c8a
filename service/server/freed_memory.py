"""Gives memory that large requests have left free back to the system, a moment after they end.

The C library keeps what was freed for later, in each of the threads that have read a body or
encoded a text: some hundred megabytes after a few of four. Beside the event loop, as it takes up to
some 10 ms; seldom, and only where the library can (glibc).
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

WAIT_S = 1.0  # until a crowd's requests have ended, too
REST_S = 5.0  # between two times
_MMAP_THRESHOLD, _ARENA_MAX = -3, -8  # as in malloc.h


def find_trim() -> Callable[[], None] | None:
    """Return what gives free memory back; None where the C library has nothing of the kind."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None

    def give_back() -> None:
        gc.collect()  # an error and its frames hold each other, and so a body
        trim(ctypes.c_size_t(0))  # without Python's lock

    return give_back


def keep_little() -> None:
    """Have the C library keep less of what is freed; for a process that has no threads yet.

    Large blocks, as bodies and texts are, get pages of their own, which go back at once; left to
    itself, glibc puts blocks of up to 32 MB on its heaps as soon as one was freed. And threads
    share few heaps: each keeps what lies below a block that is still in use.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    for option, value in ((_ARENA_MAX, 2), (_MMAP_THRESHOLD, 256 * 1024)):
        set_option(ctypes.c_int(option), ctypes.c_int(value))


class FreedMemory:
    """Has memory given back some time after large requests; used from one event loop."""

    def __init__(self, trim: Callable[[], None] | None = None) -> None:
        self._trim = trim or find_trim()
        self._is_due = False
        self._last = -REST_S

    def note(self) -> None:
        """Have memory given back soon: something large has just been let go."""
        if self._is_due or self._trim is None:
            return
        self._is_due = True
        now = time.monotonic()
        delay_s = max(WAIT_S, self._last + REST_S - now)
        self._last = now + delay_s
        asyncio.get_running_loop().call_later(delay_s, self._give_back)

    def _give_back(self) -> None:
        self._is_due = False
        if self._trim is not None:
            asyncio.get_running_loop().run_in_executor(None, self._trim)
