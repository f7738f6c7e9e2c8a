"""Runs the lines of batches: as many at once as are allowed, each batch in its turn.

Whoever waits is woken: a line by a free place, a place by an answered line. A line that was under
way when the process ended has no answer, and runs again.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

import structlog
from sqlalchemy.exc import DatabaseError

from service.batches.attempts import Attempts, Place
from service.batches.disk_faults import Persistence, reason_of
from service.batches.input_lines import InputRules, read_lines, read_request
from service.batches.records import (
    BatchRecord,
    BatchStatus,
    LineCounts,
    LineFault,
    LineRecord,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from service.batches.attempts import Execute
    from service.batches.batch_store import BatchStore
    from service.batches.disk_faults import InThread
    from service.batches.file_store import FileStore
    from service.batches.records import LineResult

log = structlog.get_logger(__name__)

T = TypeVar("T")

# At least so long a file may take to be read: the lines of one that can be are all told of.
LEAST_READING_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """How much is run at once, and what a file may hold."""

    max_at_once: int
    max_lines: int
    max_body_bytes: int
    unknown_fields: Literal["warn", "strict", "ignore"] = "warn"  # of a line, beside its body


@dataclass(slots=True)
class _Open:
    """A batch that is not over, as this process has it."""

    batch: BatchRecord
    disk: Persistence
    attempts: Attempts
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    has_failed: bool = False  # by a fault of ours: nothing of it is done before the next start

    @property
    def is_stopped(self) -> bool:
        return self.has_failed or self.disk.is_stopped


class BatchRunner:
    """The batches that are open, each in a task of its own."""

    def __init__(
        self,
        batches: BatchStore,
        files: FileStore,
        in_thread: InThread,
        execute: Execute,
        limits: RunLimits,
    ) -> None:
        self.counts = LineCounts()
        self._batches = batches
        self._files = files
        self._in_thread = in_thread
        self._execute = execute
        self._limits = limits
        self._places = asyncio.Semaphore(limits.max_at_once)
        self._open: dict[str, _Open] = {}

    @property
    def num_open(self) -> int:
        """Count the batches that are not over."""
        return len(self._open)

    def num_open_of(self, owner: str) -> int:
        """Count those of them that are an owner's."""
        return sum(each.batch.owner == owner for each in self._open.values())

    @property
    def num_stopped(self) -> int:
        """Count those of them that a fault has stopped."""
        return sum(each.is_stopped for each in self._open.values())

    @property
    def oldest_created_at(self) -> int | None:
        """Return when the oldest of them was created."""
        return min((each.batch.created_at for each in self._open.values()), default=None)

    def add(self, batch: BatchRecord) -> None:
        """Begin with a batch, or go on with it."""
        own = self._open[batch.id] = _Open(
            batch, Persistence(batch.id), Attempts(batch, self._execute)
        )
        own.task = asyncio.create_task(self._run_safely(own))

    def cancel(self, batch: BatchRecord) -> None:
        """Have a batch end, whose status says so already."""
        if (own := self._open.get(batch.id)) is None:
            return
        own.stop.set()
        if own.has_failed:  # nobody is there to see it
            self.add(batch)

    async def until_over(self, batch_id: str) -> None:
        """Wait until nothing of a batch is left to be done in this process."""
        own = self._open.get(batch_id)
        if own is not None and own.task is not None:
            await asyncio.wait([own.task])

    async def close(self) -> None:
        """Put back what is under way: it runs again after the next start."""
        tasks = [each.task for each in self._open.values() if each.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run_safely(self, own: _Open) -> None:
        batch_id = own.batch.id
        try:
            await self._run(own.batch)
        except Exception:  # ours, or a damaged database's: the next start tries again
            own.has_failed = True
            log.exception("batch_stopped", batch=batch_id, outcome="it goes on after a restart")
        finally:
            self.counts.open_lines.pop(batch_id, None)
            if not own.has_failed:
                self._open.pop(batch_id, None)

    async def _run(self, batch: BatchRecord) -> None:
        log.info("batch_runs", batch=batch.id, status=batch.status.value)
        path = self._files.path_of(batch.input_file_id)
        if batch.status is BatchStatus.VALIDATING:
            batch = await self._validate(batch, path)
        if batch.status is BatchStatus.IN_PROGRESS:
            await self._run_lines(batch, path)
            batch = await self._on_disk(batch, lambda: self._batches.finalize(batch))
        if batch.status is BatchStatus.CANCELLING:
            end = BatchStatus.CANCELLED
        elif batch.status is BatchStatus.FINALIZING:
            num_answered = batch.num_completed + batch.num_failed
            is_whole = num_answered == batch.num_lines
            end = BatchStatus.COMPLETED if is_whole else BatchStatus.EXPIRED
        elif batch.status is BatchStatus.VALIDATING:  # its file could not be read in its time
            end = BatchStatus.EXPIRED
        else:
            return
        batch = await self._on_disk(batch, lambda: self._batches.finish(batch, end))
        log.info(
            "batch_over",
            batch=batch.id,
            status=batch.status.value,
            completed=batch.num_completed,
            failed=batch.num_failed,
        )
        await self._give_back_space()

    async def _give_back_space(self) -> None:
        """Make the database smaller that results were in; piece by piece, as others want it."""
        try:
            while await self._in_thread(self._batches.give_back_space):
                pass
        except (OSError, DatabaseError) as error:
            # What the next batch leaves is given back with it.
            log.warning("batch_space_kept", reason=reason_of(error))

    async def _validate(self, batch: BatchRecord, path: Path) -> BatchRecord:
        """Read a file, and begin with its lines, or fail with its faults.

        One that cannot be read leaves its batch as it is once that is cancelled or its time over.
        """
        rules = InputRules(
            endpoint=batch.endpoint,
            max_lines=self._limits.max_lines,
            max_body_bytes=self._limits.max_body_bytes,
            refuses_unknown=self._limits.unknown_fields == "strict",
        )

        def read() -> tuple[list[LineRecord], list[LineFault]]:
            try:
                return read_lines(path, rules)
            except FileNotFoundError:
                return [], [LineFault(code="file_not_found", message="the file is gone")]

        disk = self._open[batch.id].disk
        reading = asyncio.create_task(disk.until_done(read, _in_own_thread))
        await self._unless_stopped(batch, reading, at_least_s=LEAST_READING_S)

        def take_in() -> BatchRecord:
            now = self._batches.get(batch.id)
            if now.status is not BatchStatus.VALIDATING or reading.cancelled():
                return now
            lines, faults = reading.result()
            if faults:
                return self._batches.fail(batch, faults)
            return self._batches.begin(batch, lines)

        return await self._on_disk(batch, take_in)

    async def _run_lines(self, batch: BatchRecord, path: Path) -> None:
        """Run what has no answer, until all has one, it is cancelled, or its time is over."""
        left = batch.num_lines - batch.num_completed - batch.num_failed
        self.counts.open_lines[batch.id] = left
        await self._unless_stopped(batch, asyncio.create_task(self._feed(batch, path)))

    async def _unless_stopped(
        self, batch: BatchRecord, work: asyncio.Task[T], *, at_least_s: float = 0.0
    ) -> None:
        """Wait until work is done; end it when its batch is cancelled, or its time is over."""
        stopped = asyncio.create_task(self._open[batch.id].stop.wait())
        limit_s = max(at_least_s, batch.expires_at - time.time())
        end = "batch_put_back"
        try:
            await asyncio.wait(
                (work, stopped), timeout=limit_s, return_when=asyncio.FIRST_COMPLETED
            )
            end = "batch_cancelled" if stopped.done() else "batch_expired"
            if work.done():
                work.result()
        finally:
            if not work.done():  # one line for all its requests, which have none of their own
                log.info(end, batch=batch.id, requests=self._open[batch.id].attempts.num_running)
            for task in (work, stopped):
                task.cancel()
            await asyncio.gather(work, stopped, return_exceptions=True)

    async def _feed(self, batch: BatchRecord, path: Path) -> None:
        """Begin with each line as one becomes free.

        A batch has a bound of its own for lines that it has begun with, as those that wait for
        their model have no place, and keep none from others.
        """
        lines = await self._unanswered(batch, 0)
        own = asyncio.Semaphore(self._limits.max_at_once)
        async with asyncio.TaskGroup() as group:
            while lines:
                for line in lines:
                    await own.acquire()
                    # First, as a file that cannot be read must not take a place from others.
                    request = await self._on_disk(batch, partial(read_request, path, line))
                    place = Place(self._places, self.counts)
                    await place.take()
                    task = group.create_task(self._run_in_place(batch, line, place, *request))
                    task.add_done_callback(partial(_leave, own, place))
                lines = await self._unanswered(batch, lines[-1].number)

    async def _unanswered(self, batch: BatchRecord, after: int) -> list[LineRecord]:
        return await self._on_disk(batch, lambda: self._batches.unanswered(batch, after))

    async def _run_in_place(
        self, batch: BatchRecord, line: LineRecord, place: Place, body: bytes, unknown: list[str]
    ) -> None:
        counts = self.counts
        result = await self._open[batch.id].attempts.result_of(
            line, body, place, unknown if self._limits.unknown_fields == "warn" else ()
        )
        await self._keep(batch, result)
        counts.open_lines[batch.id] -= 1
        if result.has_failed:
            counts.num_failed += 1
        else:
            counts.num_completed += 1

    async def _keep(self, batch: BatchRecord, result: LineResult) -> None:
        """Keep a result; an attempt that was begun ends, whatever becomes of the batch."""

        async def to_its_end(work: Callable[[], T]) -> T:
            return await asyncio.shield(self._in_thread(work))

        disk = self._open[batch.id].disk
        await disk.until_done(lambda: self._batches.answer(batch, result), to_its_end)

    async def _on_disk(self, batch: BatchRecord, work: Callable[[], T]) -> T:
        """Have something done of which a fault of the disk is no end; it may be done twice."""
        return await self._open[batch.id].disk.until_done(work, self._in_thread)


def _leave(own: asyncio.Semaphore, place: Place, _: asyncio.Task[None]) -> None:
    """Let other lines begin, whatever became of one; it may have ended before it began."""
    place.give_back()
    own.release()


async def _in_own_thread(work: Callable[[], T]) -> T:
    """Do what may take seconds, beside the rest."""
    return await asyncio.to_thread(work)
