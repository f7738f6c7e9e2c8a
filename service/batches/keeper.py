"""Keeps files and batches: opens their folder, answers what callers ask, and has batches run.

The folder is made with the first file. One server at a time may have it: two would run the same
batches. What takes the disk's time runs in one thread, one thing after the other.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.exc import DatabaseError

from service.batches.disk_faults import reason_of
from service.batches.errors import FolderTakenError, StorageError
from service.batches.expiry import Expiry
from service.batches.file_store import Page
from service.batches.folder import DATABASE, Opened, open_state
from service.batches.records import (
    BatchRecord,
    BatchStatus,
    FileRecord,
    LineCounts,
    Purpose,
)
from service.batches.reopening import Reopening
from service.batches.runner import BatchRunner, RunLimits
from service.batches.uploads import Upload
from service.errors import ConflictError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from service.batches.attempts import Execute

T = TypeVar("T")

_NOT_SERVED = "files and batches are not served now"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperLimits:
    """How much callers may leave here."""

    max_file_bytes: int
    max_files_bytes: int  # all together
    max_files_bytes_per_caller: int
    max_open_batches: int
    max_open_batches_per_caller: int
    run: RunLimits


class BatchKeeper:
    """The files and batches of one server."""

    def __init__(self, folder: Path, limits: KeeperLimits) -> None:
        self.limits = limits
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._opening = asyncio.Lock()
        self._creating = asyncio.Lock()  # a batch: from the count of those there are to its own
        self._opened: Opened | None = None
        self._runner: BatchRunner | None = None
        self._execute: Execute | None = None
        self._expiry = Expiry(self._remove_expired)
        self._reopening = Reopening(folder, self._open)
        self._is_closed = False

    @property
    def counts(self) -> LineCounts:
        """What became of lines since the process began."""
        return LineCounts() if self._runner is None else self._runner.counts

    @property
    def num_open_batches(self) -> int:
        """Count the batches that are not over."""
        return 0 if self._runner is None else self._runner.num_open

    @property
    def num_stopped_batches(self) -> int:
        """Count those of them that a fault has stopped."""
        return 0 if self._runner is None else self._runner.num_stopped

    @property
    def oldest_open_s(self) -> float:
        """Return for how long the oldest open batch has been there; 0 without one."""
        created_at = None if self._runner is None else self._runner.oldest_created_at
        return 0.0 if created_at is None else max(0.0, time.time() - created_at)

    @property
    def is_unavailable(self) -> bool:
        """Whether the folder could not be opened yet, so that nothing of its batches is done."""
        return self._opened is None and self._reopening.is_waiting

    async def start(self, execute: Execute) -> None:
        """Go on with what is open; execute: what runs a line."""
        self._execute = execute
        if not (self._folder / DATABASE).exists():
            return  # nothing was ever left here
        await self._reopening.begin()

    async def close(self) -> None:
        """Put back what is under way, and let go of the folder."""
        self._is_closed = True
        await self._reopening.close()
        await self._expiry.close()
        async with self._creating, self._opening:  # a batch taken in, a folder opened go, too
            if self._runner is not None:
                await self._runner.close()
            if self._opened is not None:
                await self._in_thread(self._opened.close)

    # Files

    async def begin_upload(self, owner: str) -> Upload:
        """Return what takes a new file in."""
        opened = await self._open()
        return Upload(
            opened.files,
            opened.space,
            self._ask,
            owner=owner,
            max_bytes=self.limits.max_file_bytes,
        )

    async def file(self, owner: str, file_id: str, *, param: str = "file_id") -> FileRecord:
        """Return an owner's file. Raises NotFoundError."""
        opened = await self._open()
        record = await self._ask(lambda: opened.files.find(file_id, owner))
        if record is None:
            raise NotFoundError("there is no such file here; list them at /v1/files", param=param)
        return record

    async def files(
        self, owner: str, page: Page, *, after: str | None, purpose: str | None
    ) -> list[FileRecord]:
        """Return a page of an owner's files, and one more where there are more."""
        opened = await self._open()
        if after is not None:
            page = _behind(page, (await self.file(owner, after, param="after")).number)
        return await self._ask(lambda: opened.files.page(owner, page, purpose))

    async def delete_file(self, owner: str, file_id: str) -> None:
        """Remove an owner's file. Raises NotFoundError, ConflictError."""
        opened = await self._open()
        await self.file(owner, file_id)

        def remove() -> None:
            if file_id in opened.in_use():
                raise ConflictError("a batch that is not over needs this file; cancel that first")
            opened.files.remove(file_id)

        await self._ask(remove)

    async def path_of(self, owner: str, file_id: str) -> tuple[FileRecord, Path]:
        """Return an owner's file, and where its content lies. Raises NotFoundError."""
        opened = await self._open()
        record = await self.file(owner, file_id)
        return record, opened.files.path_of(record.id)

    # Batches

    async def create_batch(self, owner: str, values: dict[str, Any]) -> BatchRecord:
        """Begin a batch of an owner's file. Raises NotFoundError, ConflictError.

        values: columns of the table, without the owner and what becomes of it.
        """
        opened = await self._open()
        record = await self.file(owner, values["input_file_id"], param="input_file_id")
        if record.purpose is not Purpose.BATCH:
            raise ConflictError("this file is a batch's output; give one of purpose batch")
        async with self._creating:
            runner = self._runner_for(owner)
            opened.space.require_some(owner)
            batch = await self._ask(lambda: opened.batches.add({**values, "owner": owner}))
            runner.add(batch)
        return batch

    async def batch(self, owner: str, batch_id: str, *, param: str = "batch_id") -> BatchRecord:
        """Return an owner's batch. Raises NotFoundError."""
        opened = await self._open()
        record = await self._ask(lambda: opened.batches.find(batch_id, owner))
        if record is None:
            raise NotFoundError(
                "there is no such batch here; list them at /v1/batches", param=param
            )
        return record

    async def batches(self, owner: str, page: Page, *, after: str | None) -> list[BatchRecord]:
        """Return a page of an owner's batches, and one more where there are more."""
        opened = await self._open()
        if after is not None:
            page = _behind(page, (await self.batch(owner, after, param="after")).number)
        return await self._ask(lambda: opened.batches.page(owner, page))

    async def cancel_batch(self, owner: str, batch_id: str) -> BatchRecord:
        """Begin to end a batch. Raises NotFoundError, ConflictError where it is over."""
        opened = await self._open()
        batch = await self.batch(owner, batch_id)

        def note() -> BatchRecord:
            now = opened.batches.get(batch.id)
            if now.status is BatchStatus.CANCELLING:
                return now
            if now.status not in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS):
                raise ConflictError(f"the batch is {now.status.value}; nothing is left to cancel")
            return opened.batches.set_status(now, BatchStatus.CANCELLING)

        batch = await self._ask(note)
        if self._runner is not None:
            self._runner.cancel(batch)
        return batch

    # Its own

    def _runner_for(self, owner: str) -> BatchRunner:
        """Return what runs one batch more of an owner's. Raises ConflictError."""
        if self._runner is None or self._is_closed:
            raise FolderTakenError(_NOT_SERVED, retry_after_s=5)
        own, share = self._runner.num_open_of(owner), self.limits.max_open_batches_per_caller
        if own >= share:
            raise ConflictError(
                f"{own} of your batches are open, at most {share} may be"
                " (max_open_batches_per_caller); wait until one is over, or cancel one"
            )
        if self.num_open_batches >= self.limits.max_open_batches:
            raise ConflictError(
                f"{self.num_open_batches} batches are open, at most {self.limits.max_open_batches}"
                " may be (max_open_batches); wait until one is over, or cancel one"
            )
        return self._runner

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _ask(self, work: Callable[[], T]) -> T:
        """Do what a caller waits for, who is told of a fault of the disk: StorageError."""
        try:
            return await self._in_thread(work)
        except (OSError, DatabaseError) as error:
            raise StorageError(f"files and batches: {reason_of(error)}") from error

    async def _open(self) -> Opened:
        """Return the folder's contents, opened once. Raises FolderTakenError, StorageError."""
        if self._opened is not None:
            return self._opened
        # To its end, whoever leaves meanwhile: the folder would be taken, and nobody's.
        return await asyncio.shield(self._open_once())

    async def _open_once(self) -> Opened:
        async with self._opening:
            if self._opened is None:
                self._require_served()
                limits = self.limits
                opened, open_batches = await self._in_thread(
                    lambda: open_state(
                        self._folder,
                        max_bytes=limits.max_files_bytes,
                        max_bytes_per_caller=limits.max_files_bytes_per_caller,
                    )
                )
                try:
                    execute = self._require_served()  # it may have ended meanwhile
                except FolderTakenError:
                    await self._in_thread(opened.close)
                    raise
                self._runner = BatchRunner(
                    opened.batches, opened.files, self._in_thread, execute, limits.run
                )
                for batch in open_batches:
                    self._runner.add(batch)
                self._opened = opened
                self._watch_expiry(opened)
            return self._opened

    def _require_served(self) -> Execute:
        if self._execute is None or self._is_closed:
            raise FolderTakenError(_NOT_SERVED, retry_after_s=5)
        return self._execute

    def _watch_expiry(self, opened: Opened) -> None:
        loop = asyncio.get_running_loop()

        def look() -> None:
            if not self._is_closed:
                self._expiry.look()

        def look_from_thread() -> None:
            loop.call_soon_threadsafe(look)

        opened.files.on_change = look_from_thread
        look()

    async def _remove_expired(self) -> int | None:
        """Remove files whose time is over; return when the next one's is."""
        opened = await self._open()

        def remove() -> int | None:
            opened.files.remove_expired(opened.in_use())
            return opened.files.next_expiry()

        return await self._in_thread(remove)


def _behind(page: Page, number: int) -> Page:
    return Page(after=number, limit=page.limit, is_newest_first=page.is_newest_first)
