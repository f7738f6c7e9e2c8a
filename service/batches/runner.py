"""Runs the lines of batches: as many at once as are allowed, each batch in its turn.

Whoever waits is woken: a batch by a free place, a place by an answered line. A line that was under
way when the process ended has no answer, and runs again.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import structlog

from service.batches.input_lines import InputRules, read_body, read_lines
from service.batches.records import (
    BatchRecord,
    BatchStatus,
    LineCounts,
    LineFault,
    LineRecord,
    LineResult,
)
from service.batches.result_lines import answered_line, failed_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from service.batches.batch_store import BatchStore
    from service.batches.file_store import FileStore

log = structlog.get_logger(__name__)

T = TypeVar("T")

MAX_ENGINE_DEATHS = 3  # that one line lives to see: it may be what they die of
LONGEST_WAIT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a request was answered."""

    status: int
    request_id: str
    body: bytes  # JSON
    is_for_later: bool = False  # it was not run for want of room, or of a model that is loaded
    is_engine_dead: bool = False  # what ran it ended meanwhile
    retry_after_s: float = 1.0
    ignored: str | None = None  # names of what the request held in vain


class Execute(Protocol):
    """Runs one request as if it had come over the wire."""

    async def __call__(self, url: str, body: bytes, owner: str, request_id: str) -> Answer:
        """Return what it is answered; raises nothing."""


class InThread(Protocol):
    """Runs what takes the disk's time."""

    async def __call__(self, work: Callable[[], T]) -> T:
        """Return what `work` returns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """How much is run at once, and what a file may hold."""

    max_at_once: int
    max_lines: int
    max_body_bytes: int


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
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stops: dict[str, asyncio.Event] = {}

    @property
    def num_open(self) -> int:
        """Count the batches that are not over."""
        return len(self._tasks)

    def add(self, batch: BatchRecord) -> None:
        """Begin with a batch, or go on with it."""
        self._stops[batch.id] = asyncio.Event()
        task = asyncio.create_task(self._run_safely(batch))
        self._tasks[batch.id] = task
        task.add_done_callback(lambda _: self._forget(batch.id))

    def cancel(self, batch: BatchRecord) -> None:
        """Have a batch end, whose status says so already."""
        if (stop := self._stops.get(batch.id)) is not None:
            stop.set()

    async def until_over(self, batch_id: str) -> None:
        """Wait until nothing of a batch is left to be done in this process."""
        if (task := self._tasks.get(batch_id)) is not None:
            await asyncio.wait([task])

    async def close(self) -> None:
        """Put back what is under way: it runs again after the next start."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, batch_id: str) -> None:
        for known in (self._tasks, self._stops, self.counts.open_lines):
            known.pop(batch_id, None)

    async def _run_safely(self, batch: BatchRecord) -> None:
        try:
            await self._run(batch)
        except Exception:  # of the disk, or ours: the next start tries again
            log.exception("batch_stopped", batch=batch.id, outcome="it goes on after a restart")

    async def _run(self, batch: BatchRecord) -> None:
        log.info("batch_runs", batch=batch.id, status=batch.status.value)
        path = self._files.path_of(batch.input_file_id)
        if batch.status is BatchStatus.VALIDATING:
            batch = await self._validate(batch, path)
        if batch.status is BatchStatus.IN_PROGRESS:
            await self._run_lines(batch, path)
            batch = await self._in_thread(lambda: self._batches.get(batch.id))
            if batch.status is BatchStatus.IN_PROGRESS:
                batch = await self._set(batch, BatchStatus.FINALIZING)
        if batch.status is BatchStatus.CANCELLING:
            end = BatchStatus.CANCELLED
        elif batch.status is BatchStatus.FINALIZING:
            num_answered = batch.num_completed + batch.num_failed
            is_whole = num_answered == batch.num_lines
            end = BatchStatus.COMPLETED if is_whole else BatchStatus.EXPIRED
        else:
            return
        batch = await self._in_thread(lambda: self._batches.finish(batch, end))
        log.info(
            "batch_over",
            batch=batch.id,
            status=batch.status.value,
            completed=batch.num_completed,
            failed=batch.num_failed,
        )

    async def _validate(self, batch: BatchRecord, path: Path) -> BatchRecord:
        rules = InputRules(
            endpoint=batch.endpoint,
            max_lines=self._limits.max_lines,
            max_body_bytes=self._limits.max_body_bytes,
        )

        def read() -> tuple[list[LineRecord], list[LineFault]]:
            try:
                return read_lines(path, rules)
            except FileNotFoundError:
                return [], [LineFault(code="file_not_found", message="the file is gone")]

        lines, faults = await asyncio.to_thread(read)  # beside the rest: it may take seconds
        stop = self._stops[batch.id]
        if stop.is_set():
            return await self._in_thread(lambda: self._batches.get(batch.id))
        if faults:
            return await self._in_thread(lambda: self._batches.fail(batch, faults))
        return await self._in_thread(lambda: self._batches.begin(batch, lines))

    async def _run_lines(self, batch: BatchRecord, path: Path) -> None:
        """Run what has no answer, until all has one, it is cancelled, or its time is over."""
        left = batch.num_lines - batch.num_completed - batch.num_failed
        self.counts.open_lines[batch.id] = left
        work = asyncio.create_task(self._feed(batch, path))
        stopped = asyncio.create_task(self._stops[batch.id].wait())
        limit_s = max(0.0, batch.expires_at - time.time())
        try:
            await asyncio.wait(
                (work, stopped), timeout=limit_s, return_when=asyncio.FIRST_COMPLETED
            )
            if work.done():
                work.result()
        finally:
            for task in (work, stopped):
                task.cancel()
            await asyncio.gather(work, stopped, return_exceptions=True)

    async def _feed(self, batch: BatchRecord, path: Path) -> None:
        """Give each line a place as one becomes free."""
        lines = await self._unanswered(batch, 0)
        async with asyncio.TaskGroup() as group:
            while lines:
                for line in lines:
                    await self._places.acquire()
                    task = group.create_task(self._run_in_place(batch, path, line))
                    task.add_done_callback(lambda _: self._places.release())
                lines = await self._unanswered(batch, lines[-1].number)

    async def _unanswered(self, batch: BatchRecord, after: int) -> list[LineRecord]:
        return await self._in_thread(lambda: self._batches.unanswered(batch, after))

    async def _run_in_place(self, batch: BatchRecord, path: Path, line: LineRecord) -> None:
        counts = self.counts
        counts.num_running += 1
        try:
            result = await self._run_line(batch, path, line)
            # Once it is known it is kept, whatever becomes of the batch meanwhile.
            await asyncio.shield(
                asyncio.ensure_future(self._in_thread(lambda: self._batches.answer(batch, result)))
            )
        finally:
            counts.num_running -= 1
        counts.open_lines[batch.id] -= 1
        if result.has_failed:
            counts.num_failed += 1
        else:
            counts.num_completed += 1

    async def _run_line(self, batch: BatchRecord, path: Path, line: LineRecord) -> LineResult:
        """Return what a line is answered, once it was not refused for the moment alone."""
        body = await self._in_thread(lambda: read_body(path, line))
        request_id = f"{batch.id}-{line.number}"
        num_deaths, wait_s = 0, 0.0
        while True:
            answer = await self._execute(batch.endpoint, body, batch.owner, request_id)
            num_deaths += answer.is_engine_dead
            if num_deaths == MAX_ENGINE_DEATHS:
                message = f"the engine ended {num_deaths} times while it ran this request"
                text = failed_line(line.custom_id, "engine_dead", message)
                return LineResult(number=line.number, text=text, has_failed=True)
            if not (answer.is_for_later or answer.is_engine_dead):
                break
            wait_s = min(max(2 * wait_s, answer.retry_after_s), LONGEST_WAIT_S)
            await asyncio.sleep(wait_s)
        text = answered_line(
            line.custom_id, answer.status, answer.request_id, answer.body, answer.ignored
        )
        return LineResult(number=line.number, text=text, has_failed=answer.status != 200)

    async def _keep(self, batch: BatchRecord, result: LineResult) -> None:
        await self._in_thread(lambda: self._batches.answer(batch, result))

    async def _set(self, batch: BatchRecord, status: BatchStatus) -> BatchRecord:
        return await self._in_thread(lambda: self._batches.set_status(batch, status))
