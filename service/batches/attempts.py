"""Asks the requests of one batch until each has an answer that stands.

What is refused for the moment is asked again. Requests for a model that does not answer do not ask
all at once: one of them tries, ever more rarely, and the others go on once it is let through. While
they wait they take no place from other batches.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import msgspec
import structlog

from service.batches.records import LineResult
from service.batches.result_lines import answered_line, failed_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.batches.records import BatchRecord, LineCounts, LineRecord

log = structlog.get_logger(__name__)

MAX_ENDS = 3  # of what runs it that one request lives to see: it may be what they end of
LONGEST_WAIT_S = 10.0
LET_THROUGH_S = 1.0  # a request that was not refused after so long is being answered


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a request was answered."""

    status: int
    request_id: str
    body: bytes  # JSON
    is_for_later: bool = False  # it was not run for want of room, or of a model that is loaded
    ended: str | None = None  # the code that tells that what ran it ended meanwhile
    reason: str = ""  # why it was not answered, in the server's words
    retry_after_s: float = 1.0
    ignored: str | None = None  # names of what the request held in vain

    @property
    def stands(self) -> bool:
        """Whether asking again would be no use."""
        return not self.is_for_later and self.ended is None


class Execute(Protocol):
    """Runs one request as if it had come over the wire."""

    async def __call__(self, url: str, body: bytes, owner: str, request_id: str) -> Answer:
        """Return what it is answered; raises nothing."""


class Place:
    """One line's, of those that all batches share."""

    def __init__(self, places: asyncio.Semaphore, counts: LineCounts) -> None:
        """counts: where those that have a place are counted as running."""
        self._places = places
        self._counts = counts
        self._is_taken = False

    async def take(self) -> None:
        """Wait for a place; without effect for a line that has one."""
        if not self._is_taken:
            await self._places.acquire()
            self._is_taken = True
            self._counts.num_running += 1

    def give_back(self) -> None:
        """Let another line have it; without effect for one that has none."""
        if self._is_taken:
            self._is_taken = False
            self._counts.num_running -= 1
            self._places.release()


@dataclass(slots=True)
class _Wait:
    """For a model that does not answer now."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    num_let_through: int = 0  # since it was begun to wait for the model at all
    wait_s: float = 0.0  # before the last attempt


class Attempts:
    """What asks for one batch."""

    def __init__(self, batch: BatchRecord, execute: Execute) -> None:
        self._batch = batch
        self._execute = execute
        self._waits: dict[str, _Wait] = {}  # by model, as requests name it
        self.num_running = 0  # requests that have been begun, and not ended
        self._num_waiting = 0
        self._is_told = False

    async def result_of(
        self, line: LineRecord, body: bytes, place: Place, unknown: Sequence[str] = ()
    ) -> LineResult:
        """Return what a line is answered, once it was not refused for the moment alone.

        place: taken while it is asked, and when it was answered; not while it waits.
        unknown: what the line says in vain beside its body, to be told with the answer.
        """
        num_ended = 0
        self.num_running += 1
        try:
            await place.take()
            answer = await self._ask(line, body)
            while not answer.stands:
                num_ended += answer.ended is not None
                if num_ended == MAX_ENDS:
                    return self._give_up(line, answer)
                place.give_back()
                answer = await self._ask_later(line, body, answer, place)
        finally:
            self.num_running -= 1
        ignored = ", ".join(filter(None, [answer.ignored, *unknown])) or None
        text = answered_line(line.custom_id, answer.status, answer.request_id, answer.body, ignored)
        return LineResult(number=line.number, text=text, has_failed=answer.status != 200)

    async def _ask(self, line: LineRecord, body: bytes) -> Answer:
        request_id = f"{self._batch.id}-{line.number}"
        return await self._execute(self._batch.endpoint, body, self._batch.owner, request_id)

    async def _ask_later(
        self, line: LineRecord, body: bytes, refused: Answer, place: Place
    ) -> Answer:
        """Ask again when the time has come, or when another was let through meanwhile."""
        wait = self._waits.setdefault(_model_of(body), _Wait())
        num_known = wait.num_let_through
        self._begin_to_wait(refused)
        attempt: asyncio.Task[Answer] | None = None
        try:
            async with wait.turn:
                if wait.num_let_through == num_known:
                    wait.wait_s = min(max(2 * wait.wait_s, refused.retry_after_s), LONGEST_WAIT_S)
                    await asyncio.sleep(wait.wait_s)
                    await place.take()  # first, as what waits for it was not let through
                    attempt = asyncio.create_task(self._ask(line, body))
                    await asyncio.wait((attempt,), timeout=LET_THROUGH_S)
                    if not attempt.done() or attempt.result().stands:
                        wait.num_let_through += 1
                        wait.wait_s = 0.0
        except BaseException:
            await _ended(attempt)
            raise
        finally:
            self._end_to_wait(has_gone_on=wait.num_let_through > num_known)
        if attempt is None:
            await place.take()
            return await self._ask(line, body)
        try:
            return await attempt
        finally:
            await _ended(attempt)

    def _begin_to_wait(self, refused: Answer) -> None:
        self._num_waiting += 1
        if not self._is_told:
            self._is_told = True
            log.warning("batch_waits", batch=self._batch.id, reason=refused.reason)

    def _end_to_wait(self, *, has_gone_on: bool) -> None:
        self._num_waiting -= 1
        if has_gone_on and self._is_told and not self._num_waiting:
            self._is_told = False
            log.info("batch_goes_on", batch=self._batch.id)

    def _give_up(self, line: LineRecord, answer: Answer) -> LineResult:
        message = f"what ran this request ended {MAX_ENDS} times, the last time so: {answer.reason}"
        log.warning(
            "batch_request_given_up", batch=self._batch.id, line=line.number, reason=answer.reason
        )
        text = failed_line(line.custom_id, answer.ended or "", message)
        return LineResult(number=line.number, text=text, has_failed=True)


class _Named(msgspec.Struct):
    """What tells which model a body is for."""

    model: object = None


def _model_of(body: bytes) -> str:
    """Return the model's name as the body has it; nothing where it names none."""
    try:
        return str(msgspec.json.decode(body, type=_Named).model)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return ""


async def _ended(attempt: asyncio.Task[Answer] | None) -> None:
    """Have an attempt end that nobody waits for any more."""
    if attempt is not None and not attempt.done():
        attempt.cancel()
        await asyncio.gather(attempt, return_exceptions=True)
