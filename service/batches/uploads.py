"""Takes a file in piece by piece, on its way to the disk, within bounds.

What is not finished leaves nothing behind, however it ends.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from typing import TYPE_CHECKING

from service.batches.disk_faults import reason_of
from service.batches.errors import StorageError
from service.batches.records import FileRecord, Purpose
from service.errors import BodyTooLargeError, ConflictError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from service.batches.disk_faults import InThread
    from service.batches.file_store import FileStore

_WRITTEN_AT_ONCE = 1024 * 1024
DATABASE_FREE = 256 * 1024  # bytes of the database that no bound is about: it has them when empty


class Space:
    """How much files take together, and may: all, and each caller's.

    What the database takes counts as files of all: results lie in it until their batch is over.
    Results are never refused, so that a caller's may take more than its share; the rest of what
    all may take is others' all the same.
    """

    def __init__(self, files: FileStore, max_bytes: int, max_bytes_per_caller: int) -> None:
        self._files = files
        self._max_bytes = max_bytes
        self._max_bytes_per_caller = min(max_bytes, max_bytes_per_caller)
        self._coming: Counter[str] = Counter()  # bytes of what is being written, by owner

    def take(self, owner: str, num_bytes: int) -> None:
        """Count so much more. Raises BodyTooLargeError."""
        share = self._max_bytes_per_caller
        if self._taken(owner) + num_bytes > share:
            raise BodyTooLargeError(
                f"your files together may take {share} bytes here, with batches' results"
                " (max_files_size_per_caller); delete some that are not needed any more"
            )
        if self._taken_beside(owner) + self._taken(owner) + num_bytes > self._max_bytes:
            raise BodyTooLargeError(
                f"all callers' files together may take {self._max_bytes} bytes here, with the"
                " results of batches (max_files_size); delete some that are not needed any more,"
                " ask others to, or wait until batches are over"
            )
        self._coming[owner] += num_bytes

    def give_back(self, owner: str, num_bytes: int) -> None:
        """Count so much less: it is kept by now, or was given up."""
        self._coming[owner] -= num_bytes
        if not self._coming[owner]:
            del self._coming[owner]

    def require_some(self, owner: str) -> None:
        """Raise ConflictError where a caller's files leave no room for more results."""
        if self._taken(owner) >= self._max_bytes_per_caller:
            raise ConflictError(
                f"your files take {self._taken(owner)} bytes, at most {self._max_bytes_per_caller}"
                " may be (max_files_size_per_caller); delete some that are not needed any more"
            )
        if self._taken_beside(owner) + self._taken(owner) >= self._max_bytes:
            raise ConflictError(
                f"all callers' files and results take the {self._max_bytes} bytes that they may"
                " (max_files_size); delete some, or wait until batches are over"
            )

    def _taken_beside(self, owner: str) -> int:
        """Return how much is not there for an owner, whatever it does."""
        others = {*self._files.num_bytes, *self._coming} - {owner}
        files = sum(min(self._max_bytes_per_caller, self._taken(other)) for other in others)
        return files + max(0, self._files.database_bytes - DATABASE_FREE)

    def _taken(self, owner: str) -> int:
        return self._files.num_bytes.get(owner, 0) + self._coming[owner]


class Upload:
    """One file that is coming; an async context, left before `finish` it leaves nothing."""

    def __init__(
        self, files: FileStore, space: Space, in_thread: InThread, *, owner: str, max_bytes: int
    ) -> None:
        self._files = files
        self._space = space
        self._in_thread = in_thread
        self._owner = owner
        self._max_bytes = max_bytes
        self._id = files.new_id()
        self._file: BinaryIO | None = None
        self._waiting = bytearray()
        self._num_bytes = 0
        self._record: FileRecord | None = None  # once it is kept
        self._is_finished = False  # and whoever sent it knows

    async def __aenter__(self) -> Upload:
        """Begin."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Forget what was not finished."""
        self._space.give_back(self._owner, self._num_bytes)
        if not self._is_finished:
            await self._in_thread(self._discard)

    async def write(self, data: bytes) -> None:
        """Take the next piece. Raises BodyTooLargeError, or StorageError."""
        if self._num_bytes + len(data) > self._max_bytes:
            raise BodyTooLargeError(
                f"the file is larger than the allowed {self._max_bytes} bytes; send less, or have"
                " the setting max_file_size raised"
            )
        self._space.take(self._owner, len(data))
        self._num_bytes += len(data)
        self._waiting += data
        if len(self._waiting) >= _WRITTEN_AT_ONCE:
            await self._in_thread(self._flush)

    async def finish(
        self, filename: str, purpose: Purpose, expires_after_s: int | None = None
    ) -> FileRecord:
        """Keep the file. Raises StorageError."""
        now = int(time.time())
        record = FileRecord(
            number=0,
            id=self._id,
            owner=self._owner,
            filename=filename,
            purpose=purpose,
            num_bytes=self._num_bytes,
            created_at=now,
            expires_at=None if expires_after_s is None else now + expires_after_s,
        )
        await self._in_thread(lambda: self._keep(record))
        self._is_finished = True
        return record

    # In the thread

    def _flush(self) -> None:
        with _told_to_sender():
            if self._file is None:
                self._file = self._files.part_of(self._id).open("wb")
            self._file.write(self._waiting)
        self._waiting.clear()

    def _keep(self, record: FileRecord) -> None:
        self._flush()
        if self._file is not None:
            with _told_to_sender():
                self._file.close()
        self._record = self._files.add(record)

    def _discard(self) -> None:
        if self._record is not None:  # whoever waited for it to be kept has left meanwhile
            self._files.remove(self._id)
            return
        if self._file is not None:
            with contextlib.suppress(OSError):  # of what could not be written before, either
                self._file.close()
        self._files.discard_part(self._id)
        self._files.discard(self._id)


@contextlib.contextmanager
def _told_to_sender() -> Iterator[None]:
    """Raise StorageError for what the disk does not take."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"the file could not be written: {reason_of(error)}") from error
