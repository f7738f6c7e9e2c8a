"""The engine's asynchronous face: submit a prompt, iterate over its tokens.

Runs the engine in one thread and hands its outputs to the event loops of those who wait for them,
one wake-up a step and loop. Streams never hold the engine up: a slow reader's tokens wait in its
stream, no more of them than it asked for.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import weakref
from collections import deque
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, TypeAlias

from engine.errors import EngineDeadError, EngineError
from engine.outputs import SequenceFailure, TokenOutput
from engine.request import SequenceRequest

if TYPE_CHECKING:
    import collections.abc
    from collections.abc import Iterable
    from types import TracebackType

    from engine.core import Engine
    from engine.outputs import StepOutput
    from engine.sampling_params import SamplingParams

log = logging.getLogger(__name__)


class _Aborted:
    """Tells a stream that its sequence was aborted from elsewhere."""


_ABORTED = _Aborted()
_Item: TypeAlias = TokenOutput | EngineError | _Aborted


class TokenStream(AsyncGenerator[TokenOutput, None]):
    """The tokens of one sequence, in order; the last one carries a finish_reason.

    Raises `EngineDeadError` if the engine stops before the sequence has ended, another
    `EngineError` if the sequence alone failed. Closing it, cancelling whoever waits for it, or
    letting go of it aborts the sequence. Belongs to the event loop in which it was made.
    """

    def __init__(self, client: EngineClient, sequence_id: int) -> None:
        self.sequence_id = sequence_id
        self.loop = asyncio.get_running_loop()
        self._client = client
        self._items: deque[_Item] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._is_over = False

    async def asend(self, value: None) -> TokenOutput:  # noqa: ARG002
        """Wait for the next token."""
        while not self._items:
            if self._is_over:
                raise StopAsyncIteration
            await self._wait()
        item = self._items.popleft()
        if isinstance(item, TokenOutput):
            self._is_over = item.finish_reason is not None
            return item
        self._is_over = True
        if isinstance(item, EngineError):
            raise item
        raise StopAsyncIteration

    async def athrow(
        self,
        typ: Any,
        val: object = None,
        tb: TracebackType | None = None,
        /,
    ) -> TokenOutput:
        """End the stream with an exception."""
        await self.aclose()
        error = val if isinstance(val, BaseException) else typ
        raise error if tb is None else error.with_traceback(tb)

    async def aclose(self) -> None:
        """Abort the sequence if it still runs; return at once."""
        if not self._is_over:
            self._is_over = True
            self._client.abort(self.sequence_id)
        self._items.clear()
        self._wake()

    def push(self, item: _Item) -> None:
        """Take what the engine says; called in the stream's event loop."""
        if not self._is_over:
            self._items.append(item)
            self._wake()

    async def _wait(self) -> None:
        if self._waiter is not None:
            raise RuntimeError(f"two tasks wait for the tokens of sequence {self.sequence_id}")
        self._waiter = self.loop.create_future()
        try:
            await self._waiter
        except asyncio.CancelledError:
            await self.aclose()
            raise
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class EngineClient:
    """Runs an engine in a thread of its own; every method may be called from any thread."""

    def __init__(self, engine: Engine) -> None:
        self.max_model_len = engine.limits.max_model_len
        self.vocab_size = engine.limits.vocab_size
        self._limits = engine.limits
        self._engine = engine  # after start, only its thread touches it
        self._thread = threading.Thread(target=self._run, name="engine")
        # Guards all below; notified when there is something for the thread to do.
        self._changed = threading.Condition()
        self._sequence_ids = itertools.count()
        self._arrived: list[SequenceRequest] = []
        self._aborted: list[int] = []
        self._is_stopping = False
        self._is_ended = False
        self._death: Exception | None = None  # what the engine died of
        # Weak: a stream that nobody holds any more is found missing, and its sequence aborted.
        self._streams: weakref.WeakValueDictionary[int, TokenStream] = weakref.WeakValueDictionary()

    @property
    def is_alive(self) -> bool:
        """Whether the engine takes work."""
        return self._thread.is_alive() and not self._is_ended

    def start(self) -> None:
        """Start the engine's thread; once."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the step it is in; streams still open raise `EngineDeadError`."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def generate(
        self,
        prompt_token_ids: collections.abc.Sequence[int],
        params: SamplingParams,
        *,
        caller: str | None = None,
    ) -> TokenStream:
        """Submit a prompt; call it in the event loop that will read the stream.

        Raises an `InvalidRequestError` or `EngineDeadError` at once.
        """
        self._limits.check(prompt_token_ids, params)
        request = SequenceRequest(
            sequence_id=next(self._sequence_ids),
            prompt_token_ids=tuple(prompt_token_ids),
            params=params,
            caller=caller or "",
        )
        stream = TokenStream(self, request.sequence_id)
        with self._changed:
            if not self.is_alive or self._is_stopping:
                raise self._dead_error()
            self._streams[request.sequence_id] = stream
            self._arrived.append(request)
            self._changed.notify()
        return stream

    def abort(self, sequence_id: int) -> None:
        """End a sequence within a step; its stream ends without a finish_reason."""
        with self._changed:
            stream = self._streams.pop(sequence_id, None)
            if stream is None:  # ended already
                return
            self._aborted.append(sequence_id)
            self._changed.notify()
        _hand_over([(stream, _ABORTED)])

    def _run(self) -> None:
        """Step while there is work; whatever goes wrong in the engine ends here."""
        try:
            while self._take_changes():
                self._deliver(self._engine.step())
        except Exception as error:
            log.exception("the engine died")
            self._end(error)
        else:
            self._end(None)

    def _take_changes(self) -> bool:
        """Sleep until there is something to do, and tell the engine; False when it is to stop."""
        with self._changed:
            while not (
                self._is_stopping or self._arrived or self._aborted or self._engine.has_work
            ):
                self._changed.wait()
            arrived, self._arrived = self._arrived, []
            aborted, self._aborted = self._aborted, []
        for request in arrived:
            self._add(request)
        for sequence_id in aborted:
            self._engine.abort(sequence_id)
        return not self._is_stopping

    def _add(self, request: SequenceRequest) -> None:
        try:
            self._engine.add(request)
        except EngineError as error:
            self._deliver([SequenceFailure(request.sequence_id, error)])

    def _deliver(self, outputs: Iterable[StepOutput]) -> None:
        items: list[tuple[TokenStream, _Item]] = []
        with self._changed:
            for output in outputs:
                stream = self._streams.get(output.sequence_id)
                if stream is None:
                    self._engine.abort(output.sequence_id)
                    continue
                if isinstance(output, SequenceFailure):
                    items.append((stream, output.error))
                    del self._streams[output.sequence_id]
                elif isinstance(output, TokenOutput):
                    items.append((stream, output))
                    if output.finish_reason is not None:
                        del self._streams[output.sequence_id]
        for stream in _hand_over(items):
            self.abort(stream.sequence_id)

    def _end(self, error: Exception | None) -> None:
        """Take no more work and tell every open stream."""
        with self._changed:
            self._is_ended = True
            self._death = error
            streams = list(self._streams.values())
            self._streams.clear()
        _hand_over([(stream, self._dead_error()) for stream in streams])

    def _dead_error(self) -> EngineDeadError:
        if self._death is not None:
            error = EngineDeadError(f"the engine died of {type(self._death).__name__}")
            error.__cause__ = self._death
            return error
        if self._thread.ident is None:
            return EngineDeadError("the engine has not been started")
        return EngineDeadError("the engine was stopped")


def _hand_over(items: Iterable[tuple[TokenStream, _Item]]) -> list[TokenStream]:
    """Push items to their streams, one wake-up a loop; return those whose loop is closed."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[TokenStream, _Item]]] = {}
    for stream, item in items:
        by_loop.setdefault(stream.loop, []).append((stream, item))
    unreachable: list[TokenStream] = []
    for loop, theirs in by_loop.items():
        try:
            loop.call_soon_threadsafe(_push_all, theirs)
        except RuntimeError:  # the loop is closed
            unreachable += (stream for stream, _ in theirs)
    return unreachable


def _push_all(items: Iterable[tuple[TokenStream, _Item]]) -> None:
    for stream, item in items:
        stream.push(item)
