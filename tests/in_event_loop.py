"""Tests that are coroutines, each run in an event loop of its own."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, ParamSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

Given = ParamSpec("Given")


def in_event_loop(test: Callable[Given, Coroutine[object, object, None]]) -> Callable[Given, None]:
    """Run a test's coroutine to its end."""

    @functools.wraps(test)
    def run(*values: Given.args, **named: Given.kwargs) -> None:
        asyncio.run(test(*values, **named))

    return run
