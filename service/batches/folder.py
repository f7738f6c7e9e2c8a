"""Opens the folder of files and batches, which one server at a time may have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from sqlalchemy.exc import DatabaseError

from service.batches.batch_store import BatchStore
from service.batches.disk_faults import reason_of
from service.batches.errors import FolderTakenError, StorageError
from service.batches.file_store import FileStore
from service.batches.tables import open_database
from service.batches.uploads import Space

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine

    from service.batches.records import BatchRecord

DATABASE = "batches.sqlite"
TAKEN_WAIT_S = 5  # before another server may have let go of it, as in a rolling restart


@dataclass(slots=True)
class Opened:
    """What there is once the folder is open; used from one thread."""

    database: Engine
    files: FileStore
    batches: BatchStore
    space: Space
    lock: FileLock

    def in_use(self) -> set[str]:
        """Return the ids of files that batches which are not over need."""
        return {batch.input_file_id for batch in self.batches.open_ones()}

    def close(self) -> None:
        """Let go of the folder."""
        self.database.dispose()
        self.lock.release()


def open_state(
    folder: Path, *, max_bytes: int, max_bytes_per_caller: int
) -> tuple[Opened, list[BatchRecord]]:
    """Return what is in a folder, made where there was none, and the batches that are not over.

    max_bytes: that files may take, all and each caller's. Raises FolderTakenError, StorageError.
    """
    lock = FileLock(folder / "lock", thread_local=False)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock.acquire(timeout=0)
    except Timeout:
        raise FolderTakenError(
            "another server keeps its files and batches in the same folder; give this one a"
            " state_dir of its own",
            retry_after_s=TAKEN_WAIT_S,
        ) from None
    except OSError as error:
        raise StorageError(_what_is_wrong(error)) from error
    database: Engine | None = None
    try:
        database = open_database(folder / DATABASE)
        files = FileStore(database, folder / "files")
        files.remove_leftovers()
        files.keep_spare()
        files.measure()
        batches = BatchStore(database, files)
        opened = Opened(
            database, files, batches, Space(files, max_bytes, max_bytes_per_caller), lock
        )
        return opened, batches.open_ones()
    except BaseException as error:
        if database is not None:
            database.dispose()
        lock.release()
        if isinstance(error, OSError | DatabaseError):
            raise StorageError(_what_is_wrong(error)) from error
        raise


def _what_is_wrong(error: OSError | DatabaseError) -> str:
    """Say why the folder cannot be used, without its path: callers read it."""
    return f"files and batches cannot be kept now: {reason_of(error)}"
