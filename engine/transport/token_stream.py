"""The tokens of one sequence, as whoever asked for them reads them.

`engine.transport.client` pushes what an engine reports; a reader may be slower or faster.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from engine.statistics import TokenTimes

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.errors import EngineError
    from engine.outputs import TokenLogprobs, TokenOutput
    from engine.statistics import Latencies


class TokenStream:
    """The tokens of one sequence, in order; the last one carries a finish_reason.

    Raises `EngineDeadError` if the engine stops before the sequence has ended, another
    `EngineError` if the sequence alone failed. Closing it, cancelling whoever waits for it, or
    letting go of it aborts the sequence.
    """

    def __init__(
        self, sequence_id: int, abort: Callable[[int], None], latencies: Latencies
    ) -> None:
        """latencies: where its times are counted."""
        self.sequence_id = sequence_id
        self.latencies = latencies
        # What was asked for of the prompt, complete before the first token comes.
        self.prompt_logprobs: list[TokenLogprobs] = []
        # Of the prompt: how many need not be computed, because they were in the prefix cache when
        # the sequence was first admitted. Known before the first token comes. Choices of one
        # request find each other's, so what the request itself found is its first choice's number.
        self.num_cached_tokens = 0
        self.times = TokenTimes(time.monotonic())
        self._abort = abort
        self._outputs: list[TokenOutput] = []
        self._error: EngineError | None = None  # comes after the outputs
        self._is_over = False  # nothing more will come
        self._was_accepted = False
        self._is_accepted: asyncio.Future[None] | None = None  # while somebody waits for it
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> TokenStream:
        return self

    async def __anext__(self) -> TokenOutput:
        """Wait for the next token."""
        if not self._outputs:
            await self._wait()
        if not self._outputs:
            raise StopAsyncIteration
        return self._outputs.pop(0)

    async def take(self) -> list[TokenOutput]:
        """Wait for tokens, and return all that have come; none once the sequence has ended."""
        if not self._outputs:
            await self._wait()
        outputs = self._outputs
        self._outputs = []
        return outputs

    async def accepted(self) -> None:
        """Wait until the sequence's grammar has been read; raises `InvalidConstraintError`.

        Returns at once where that is known, and never for a sequence without a grammar before its
        first token comes.
        """
        if not (self._outputs or self._is_over or self._was_accepted):
            self._is_accepted = asyncio.get_running_loop().create_future()
            await self._is_accepted
        if not self._outputs and self._error is not None:
            error, self._error = self._error, None
            raise error

    async def aclose(self) -> None:
        """Abort the sequence if it still runs; return at once."""
        self._outputs.clear()
        self._error = None
        if not self._is_over:
            self._abort(self.sequence_id)

    def accept(self) -> None:
        """Take note that its grammar has been read."""
        self._was_accepted = True
        if self._is_accepted is not None and not self._is_accepted.done():
            self._is_accepted.set_result(None)

    def push(self, output: TokenOutput) -> None:
        self._outputs.append(output)
        if output.finish_reason is not None:
            self._is_over = True
        if self._waiter is not None:
            self._wake()

    def end(self, error: EngineError | None = None) -> None:
        """Take note that nothing more will come."""
        self._is_over = True
        self._error = error
        self.accept()
        self._wake()

    async def _wait(self) -> None:
        """Wait until there is something to give, or nothing more will come."""
        if self._waiter is not None:
            raise RuntimeError(f"two tasks wait for the tokens of sequence {self.sequence_id}")
        if not self._is_over:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                await self.aclose()
                raise
            finally:
                self._waiter = None
        if not self._outputs and self._error is not None:
            error, self._error = self._error, None
            raise error

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
