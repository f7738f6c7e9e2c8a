"""Runs work on texts beside the event loop: in two lanes, so that short texts pass long ones.

A tokenizer has few texts under way at once (`service.text.encoding`), first come first served, so a
few long ones would make every other wait for seconds. So long ones have fewer threads than a
tokenizer has turns: however many come, a turn is left for short ones. What waits here waits in a
queue and holds no thread. None of the threads are the event loop's default ones, in which bodies
and files are read.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from service.text.encoding import MAX_AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")

# Tokenizers take 0.06 to 0.2 s for so many characters (2026-11), as long as a short text may wait.
MAX_SHORT = 64 * 1024
# Their threads start when they are first needed.
_short_texts = ThreadPoolExecutor(thread_name_prefix="short-text")
_long_texts = ThreadPoolExecutor(MAX_AT_ONCE - 1, thread_name_prefix="long-text")


async def run_in_lane(size: int, work: Callable[[], Result]) -> Result:
    """Return what `work` returns; size: characters or tokens that it reads.

    Work that has not begun when nobody waits for it any more is dropped.
    """
    lane = _short_texts if size <= MAX_SHORT else _long_texts
    return await asyncio.get_running_loop().run_in_executor(lane, work)
