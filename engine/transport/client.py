"""The engine's asynchronous face: submit a prompt, iterate over its tokens.

The engine runs elsewhere, in a process or a thread of its own; here is what the event loop sees of
it, from its loading to its end. One message carries all that one turn of the loop submits, one
wake-up brings all that one step gave. Streams never hold the engine up: a slow reader's tokens wait
in its stream, no more of them than it asked for.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import structlog

from engine.errors import EngineDeadError, EngineStartError, LiveCheckError
from engine.limits import SequenceLimits
from engine.request import SequenceRequest, Terms
from engine.statistics import Latencies
from engine.transport.backlog import Backlog, Place, QueueLimits
from engine.transport.integrity_questions import IntegrityQuestions
from engine.transport.outbox import Outbox
from engine.transport.token_stream import TokenStream
from engine.transport.wire import (
    CheckIntegrity,
    EngineFailed,
    Heartbeat,
    IntegrityReport,
    LiveCheckFailed,
    LiveCheckReport,
    Progress,
    Ready,
    Shutdown,
    StartFailed,
    StepReport,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping, Sequence
    from pathlib import Path

    from engine.sampling_params import SamplingParams
    from engine.statistics import EngineStatistics, LiveCheckStatistics
    from engine.transport.sockets import ClientSockets
    from engine.transport.wire import EngineEvent, Work

log = structlog.get_logger(__name__)

# Messages read in one turn of the event loop; then others have theirs.
_MESSAGES_PER_TURN = 64
NO_TERMS = Terms()
# More than an engine can have said between its last report that was read and its end.
_MAX_DRAINED_MESSAGES = 65_536
_DRAIN_S = 1.0  # for what an engine said last to arrive; on a busy machine it takes a while


@dataclass(frozen=True, slots=True)
class Submission:
    """One sequence to run."""

    prompt_token_ids: Sequence[int]
    params: SamplingParams
    group: int | None = None  # of sequences with the same prompt
    grammar: str | None = None  # what the answer must follow


class EngineClient:
    """One life of an engine, seen from one event loop; make it there, before the engine starts."""

    def __init__(
        self,
        sockets: ClientSockets,
        limits: QueueLimits,
        *,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.statistics: EngineStatistics | None = None  # None before the first step
        self.latencies = Latencies()
        self._background_latencies = Latencies()  # apart: they tell of no user's wait
        self.live_check: LiveCheckStatistics | None = None  # None where none is made
        self.step_s = 0.0  # how long the step under way had been running at the last heartbeat
        self.last_heard = self.last_progress = time.monotonic()
        self._sockets = sockets
        self._on_progress = on_progress
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[Ready] = self._loop.create_future()
        self._limits: SequenceLimits | None = None  # known once it is ready
        self._death: EngineDeadError | None = None
        self._is_closed = False
        self._has_died = asyncio.Event()
        self._sequence_ids = itertools.count()
        # Weak: a stream that nobody holds any more is found missing, and its sequence aborted.
        self._streams: weakref.WeakValueDictionary[int, TokenStream] = weakref.WeakValueDictionary()
        self._backlog = Backlog(limits)
        self._outbox = Outbox(self._send)
        self._questions = IntegrityQuestions()
        self._loop.add_reader(sockets.fileno, self._read)

    @property
    def folder(self) -> Path:
        """Where the engine finds its client."""
        return self._sockets.folder

    @property
    def is_alive(self) -> bool:
        """Whether the engine takes work."""
        return self._limits is not None and self._death is None

    @property
    def death(self) -> EngineDeadError | None:
        """What the engine ended of; None while it lives."""
        return self._death

    async def died(self) -> None:
        """Wait until it is known that the engine has ended, or that it is about to."""
        await self._has_died.wait()

    @property
    def max_model_len(self) -> int:
        """Most tokens of a prompt and its answer together."""
        return self._known_limits().max_model_len

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self._known_limits().vocab_size

    @property
    def num_open_sequences(self) -> int:
        return len(self._streams)

    async def ready(self) -> Ready:
        """Wait until the engine takes work. Raises EngineDeadError if it never will."""
        return await asyncio.shield(self._ready)

    def generate(
        self, prompt_token_ids: Sequence[int], params: SamplingParams, *, terms: Terms = NO_TERMS
    ) -> TokenStream:
        """Submit one prompt; see `submit`."""
        (stream,) = self.submit([Submission(prompt_token_ids, params)], terms=terms)
        return stream

    def require_room(self, num_ahead: int = 0) -> None:
        """Raise QueueFullError where no more may wait, EngineDeadError where nothing runs.

        num_ahead: sequences that are about to reserve their places, and come before.
        """
        self._limits_alive()
        self._backlog.require_room(num_ahead)

    def reserve(self, num_seqs: int, *, is_background: bool = False) -> Place:
        """Keep room for sequences until they are submitted, or the place is released; or raise."""
        self._limits_alive()
        return self._backlog.reserve(num_seqs, is_background=is_background)

    def submit(
        self,
        submissions: Sequence[Submission],
        *,
        terms: Terms = NO_TERMS,
        place: Place | None = None,
    ) -> list[TokenStream]:
        """Submit the sequences of one request, all of them or none; place: reserved for them.

        Raises an InvalidRequestError, QueueFullError or EngineDeadError at once.
        """
        limits = self._limits_alive()
        for submission in submissions:
            limits.check(submission.prompt_token_ids, submission.params)
        lengths = [len(submission.prompt_token_ids) for submission in submissions]
        self._backlog.enter(self._outbox.number, lengths, place, terms.is_background)
        return [self._open_stream(submission, terms) for submission in submissions]

    def abort(self, sequence_id: int) -> None:
        """End a sequence within a step; its stream ends without a finish_reason."""
        stream = self._streams.pop(sequence_id, None)
        if stream is None:  # ended already
            return
        self._outbox.abort(sequence_id)
        stream.end()

    async def check_integrity(self) -> IntegrityReport:
        """Ask the engine whether its accounting is right. Raises EngineDeadError."""
        self._limits_alive()
        answer = self._questions.ask()
        self._sockets.send(CheckIntegrity())
        return await answer

    def shut_down(self) -> bool:
        """Tell the engine to end after its step; False where it cannot be reached."""
        return not self._is_closed and self._sockets.send(Shutdown())

    async def drain_messages(self) -> None:
        """Wait, for a moment, until all has come that an engine said before it ended.

        What it died of is in its last message, and an end is noticed sooner than that arrives.
        """
        if not self._is_closed:
            await self._sockets.until_peer_disconnected(_DRAIN_S)

    def end(self, error: EngineDeadError) -> None:
        """Take no more work and tell every open stream; what the engine said before comes first."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._sockets.fileno)
        try:
            self._take_in_all(_MAX_DRAINED_MESSAGES)
        finally:
            if self._death is None:
                self._die(error)
            self._sockets.close()

    def _known_limits(self) -> SequenceLimits:
        if self._limits is None:
            raise EngineDeadError("the engine has not been loaded yet")
        return self._limits

    def _limits_alive(self) -> SequenceLimits:
        if self._death is not None:
            raise _again(self._death)
        return self._known_limits()

    def _open_stream(self, submission: Submission, terms: Terms) -> TokenStream:
        request = _request_of(next(self._sequence_ids), submission, terms)
        latencies = self._background_latencies if terms.is_background else self.latencies
        stream = TokenStream(request.sequence_id, self.abort, latencies)
        self._streams[stream.sequence_id] = stream
        self._outbox.submit(request)
        return stream

    def _send(self, work: Work) -> None:
        if self._is_closed:
            return
        if not self._sockets.send(work) and self._death is None:
            self._die(EngineDeadError("the engine cannot be reached"))

    def _read(self) -> None:
        """Take in what has come."""
        if self._is_closed:
            return
        if self._take_in_all(_MESSAGES_PER_TURN) == _MESSAGES_PER_TURN:
            self._loop.call_soon(self._read)  # nothing else would tell of the rest

    def _take_in_all(self, limit: int) -> int:
        """Take in what has come, at most so many messages; return how many they were."""
        num_messages = 0
        try:
            for event in self._sockets.receive(limit=limit):
                num_messages += 1
                self._take_in(event)
        except msgspec.MsgspecError:  # a fault of ours, and what was lost is not known
            log.exception("engine_message_unreadable")
            if self._death is None:
                self._die(EngineDeadError("the engine cannot be understood"))
        return num_messages

    def _take_in(self, event: EngineEvent) -> None:
        self.last_heard = time.monotonic()
        match event:
            case StepReport():
                self._deliver(event)
            case Heartbeat():
                self.step_s = event.step_s
            case Progress():
                self.last_progress = self.last_heard
                if self._on_progress is not None:
                    self._on_progress(event)
            case Ready():
                self._begin(event)
            case StartFailed():
                self._die(EngineStartError(event.reason, start_failure=event.start_failure))
            case IntegrityReport():
                self._questions.answer(event)
            case LiveCheckReport():
                self.live_check = event.statistics
            case LiveCheckFailed():
                self._die(LiveCheckError(event.reason, start_failure=event.start_failure))
            case EngineFailed():
                self._die(EngineDeadError(event.reason))

    def _begin(self, ready: Ready) -> None:
        self._sockets.unlink_sockets()
        self._limits = SequenceLimits(ready.vocab_size, ready.max_model_len)
        if not self._ready.done():
            self._ready.set_result(ready)

    def _deliver(self, report: StepReport) -> None:
        self.statistics = report.statistics
        self._backlog.update(report.work_number, report.statistics)
        streams = self._streams
        _tell_of_grammars(report, streams)
        _tell_of_prompts(report, streams)
        now = self.last_heard
        for output in report.tokens:
            stream = streams.get(output.sequence_id)
            if stream is None:
                if output.finish_reason is None:
                    self._outbox.abort(output.sequence_id)
                continue
            stream.latencies.note_token(stream.times, now)
            stream.push(output)
            if output.finish_reason is not None:
                del streams[output.sequence_id]
        _tell_failures(report, streams)

    def _die(self, error: EngineDeadError) -> None:
        self._death = error
        self._has_died.set()
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # whoever did not wait for it need not know
        self._questions.fail(error)
        _end_all(self._streams, error)


def _tell_of_grammars(report: StepReport, streams: Mapping[int, TokenStream]) -> None:
    """Tell streams whose grammar was read that they run."""
    for sequence_id in report.accepted:
        if (stream := streams.get(sequence_id)) is not None:
            stream.accept()


def _end_all(streams: MutableMapping[int, TokenStream], error: EngineDeadError) -> None:
    """Tell every stream that nothing more will come."""
    ended = list(streams.values())
    streams.clear()
    for stream in ended:
        stream.end(_again(error))


def _tell_of_prompts(report: StepReport, streams: Mapping[int, TokenStream]) -> None:
    """Give streams what a step found of their prompts; before its tokens."""
    for part in report.prompt_logprobs:
        if (stream := streams.get(part.sequence_id)) is not None:
            stream.prompt_logprobs += part.tokens
    for started in report.started:
        if (stream := streams.get(started.sequence_id)) is not None:
            stream.num_cached_tokens = started.num_cached_tokens
            stream.latencies.note_start(stream.times, started.queue_s)


def _tell_failures(report: StepReport, streams: MutableMapping[int, TokenStream]) -> None:
    """End the streams of sequences that failed."""
    for failure in report.failures:
        if (stream := streams.pop(failure.sequence_id, None)) is not None:
            stream.end(failure.error)


def _request_of(sequence_id: int, submission: Submission, terms: Terms) -> SequenceRequest:
    return SequenceRequest(
        sequence_id=sequence_id,
        prompt_token_ids=tuple(submission.prompt_token_ids),
        params=submission.params,
        caller=terms.caller,
        weight=terms.weight,
        priority=terms.priority,
        cache_salt=terms.cache_salt,
        group=submission.group,
        timeout_s=terms.timeout_s,
        grammar=submission.grammar,
        is_background=terms.is_background,
    )


def _again(error: EngineDeadError) -> EngineDeadError:
    """Make the same error anew: a raised one collects the traceback of whoever handles it."""
    return type(error)(str(error))
