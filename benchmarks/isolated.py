"""A runner in a process of its own.

Runners that share a process share its OpenMP runtime, and GNU's lets workers sleep at every barrier
once several threads have had some: whoever comes second is measured slower than it is.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
from typing import TYPE_CHECKING, Any, Protocol

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection


class Runner(Protocol):
    """Something that can be timed."""

    name: str

    def decode(self, prompts: list[list[int]], num_tokens: int) -> float | None:
        """Return generated tokens a second, all prompts together; None if it can't take them."""

    def prefill(self, prompt: list[int]) -> float:
        """Return prompt tokens a second until the first token."""


class IsolatedRunner:
    """Makes a runner in a fresh process and passes calls on to it, one at a time."""

    def __init__(self, make: Callable[..., Runner], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._calls, theirs = context.Pipe()
        self._process = context.Process(target=_answer, args=(theirs, make, arguments), daemon=True)
        self._process.start()
        theirs.close()  # so that a child that dies is noticed
        self.name: str = self._calls.recv()

    def decode(self, prompts: list[list[int]], num_tokens: int) -> float | None:
        """Return generated tokens a second, all prompts together; None if it can't take them."""
        rate: float | None = self.call("decode", prompts, num_tokens)
        return rate

    def prefill(self, prompt: list[int]) -> float:
        """Return prompt tokens a second until the first token."""
        rate: float = self.call("prefill", prompt)
        return rate

    def call(self, method: str, *arguments: object) -> Any:
        """Call another method that the runner has."""
        self._calls.send((method, arguments))
        return self._calls.recv()

    def close(self) -> None:
        """End the process."""
        self._calls.close()
        self._process.join()


def _answer(calls: Connection, make: Callable[..., Runner], arguments: tuple[object, ...]) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    runner = make(*arguments)
    calls.send(runner.name)
    with contextlib.suppress(EOFError):  # the other end was closed: nothing more is asked
        while True:
            method, given = calls.recv()
            calls.send(getattr(runner, method)(*given))
    # Not by the interpreter's way out, which would wait for the runner's own threads.
    os._exit(0)
