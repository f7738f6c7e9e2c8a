"""Files: a row of each, and its content under its id.

A content that has no row is nothing: it is left over from an upload or a deletion that the process
did not live to end, and removed at the next start. Used from one thread.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy import delete, func, insert, or_, select
from sqlalchemy.exc import DatabaseError, OperationalError

from service.batches.disk_faults import reason_of
from service.batches.records import FileRecord, Purpose
from service.batches.tables import files, shorten_log, used_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from sqlalchemy import Connection, Engine

log = structlog.get_logger(__name__)

PART = ".part"  # ends the name of what is not complete
SPARE_BYTES = 64 * 1024  # that the database needs to note, on a full disk, that files go


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Which of many are asked for."""

    after: int | None = None  # the number of the last one known
    limit: int = 20
    is_newest_first: bool = True


class FileStore:
    """The files of one folder."""

    def __init__(self, database: Engine, folder: Path) -> None:
        self.num_bytes: Mapping[str, int] = {}  # that each owner's files take together
        self.database_bytes = 0  # that the database takes beside them, with results
        self.on_change: Callable[[], None] = _nothing  # called once files came or went
        self._database = database
        self._folder = folder
        self._spare = folder.with_name("spare")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def new_id(self) -> str:
        """Return an id that nobody can guess."""
        return f"file-{secrets.token_hex(16)}"

    def path_of(self, file_id: str) -> Path:
        """Return where a content lies; file_id: one of ours, never what a client wrote."""
        return self._folder / file_id

    def part_of(self, file_id: str) -> Path:
        """Return where a content is written until it is complete."""
        return self._folder / f"{file_id}{PART}"

    def find(self, file_id: str, owner: str) -> FileRecord | None:
        """Return an owner's file of this id, if it has not expired."""
        wanted = select(files).where(files.c.id == file_id, files.c.owner == owner, _lasts())
        with self._database.connect() as connection:
            row = connection.execute(wanted).mappings().first()
        return None if row is None else _record(row)

    def page(self, owner: str, page: Page, purpose: str | None = None) -> list[FileRecord]:
        """Return an owner's files, one more than asked for where there are more."""
        wanted = select(files).where(files.c.owner == owner, _lasts())
        if purpose is not None:
            wanted = wanted.where(files.c.purpose == purpose)
        wanted = paged(wanted, files.c.number, page)
        with self._database.connect() as connection:
            return [_record(row) for row in connection.execute(wanted).mappings()]

    def measure(self) -> None:
        """Find out how much files take together, and have it told that some came or went."""
        wanted = select(files.c.owner, func.sum(files.c.num_bytes)).group_by(files.c.owner)
        with self._database.connect() as connection:
            self.num_bytes = {owner: int(total) for owner, total in connection.execute(wanted)}
            self.measure_database(connection)
        self.on_change()

    def measure_database(self, connection: Connection) -> None:
        """Find out how much the database takes, as part of a transaction or without."""
        self.database_bytes = used_bytes(connection)

    def add(self, record: FileRecord) -> FileRecord:
        """Take in a file whose content is complete, under the name of an unfinished one."""
        with self._database.begin() as connection:
            record = self.add_within(connection, record)
        self.measure()
        return record

    def add_within(self, connection: Connection, record: FileRecord) -> FileRecord:
        """Take it in as part of a transaction: the content first, as no row may be without."""
        self.part_of(record.id).rename(self.path_of(record.id))
        values = {
            "id": record.id,
            "owner": record.owner,
            "filename": record.filename,
            "purpose": record.purpose.value,
            "num_bytes": record.num_bytes,
            "created_at": record.created_at,
            "expires_at": record.expires_at,
        }
        done = connection.execute(insert(files).values(values))
        key = done.inserted_primary_key
        return replace(record, number=int(key[0]) if key is not None else 0)

    def remove(self, file_id: str) -> None:
        """Remove a file; the row first, as no row may be without a content."""
        self._remove([file_id])

    def discard_part(self, file_id: str) -> None:
        """Remove what was not completed."""
        with contextlib.suppress(OSError):
            self.part_of(file_id).unlink(missing_ok=True)

    def discard(self, file_id: str) -> None:
        """Remove a content whose row was not taken in after all; nothing where it was."""
        known = select(func.count()).select_from(files).where(files.c.id == file_id)
        with contextlib.suppress(OSError, DatabaseError), self._database.connect() as connection:
            if connection.execute(known).scalar_one() == 0:
                self.path_of(file_id).unlink(missing_ok=True)

    def remove_expired(self, but: set[str]) -> None:
        """Remove files whose time is over; but: those that are in use."""
        due = select(files.c.id).where(files.c.expires_at <= int(time.time()))
        with self._database.connect() as connection:
            expired = set(connection.execute(due).scalars()) - but
        if expired:
            self._remove(sorted(expired))

    def next_expiry(self) -> int | None:
        """Return when the next file's time is over, of those whose time is not."""
        coming = select(func.min(files.c.expires_at)).where(files.c.expires_at > int(time.time()))
        with self._database.connect() as connection:
            found: int | None = connection.execute(coming).scalar_one()
        return found

    def _remove(self, file_ids: Sequence[str]) -> None:
        try:
            self._forget(file_ids)
        except OperationalError:  # mostly a full disk, on which files shall go all the same
            self._spare.unlink(missing_ok=True)
            with contextlib.suppress(OperationalError):
                shorten_log(self._database)
            self._forget(file_ids)
        try:
            for file_id in file_ids:
                self._unlink(file_id)
            self.keep_spare()
        finally:
            self.measure()

    def _unlink(self, file_id: str) -> None:
        """Remove a content whose row is gone; the next start removes what cannot be now."""
        try:
            self.path_of(file_id).unlink(missing_ok=True)
        except OSError as error:
            log.warning("file_content_stays", file=file_id, reason=reason_of(error))

    def _forget(self, file_ids: Sequence[str]) -> None:
        with self._database.begin() as connection:
            for file_id in file_ids:
                connection.execute(delete(files).where(files.c.id == file_id))

    def keep_spare(self) -> None:
        """Take a little of the disk, to be let go where there is nothing left."""
        if self._spare.exists() and self._spare.stat().st_size == SPARE_BYTES:
            return
        try:
            self._spare.write_bytes(bytes(SPARE_BYTES))
        except OSError:
            self._spare.unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Remove contents without a row; at the start, when nothing is being written."""
        with self._database.connect() as connection:
            known = set(connection.execute(select(files.c.id)).scalars())
        for path in self._folder.iterdir():
            if path.name not in known:
                path.unlink()


def _nothing() -> None:
    """Tell nobody."""


def paged(wanted: Any, number: Any, page: Page) -> Any:
    """Return a query for one page and the first row of the next."""
    if page.after is not None:
        wanted = wanted.where(number < page.after if page.is_newest_first else number > page.after)
    order = number.desc() if page.is_newest_first else number.asc()
    return wanted.order_by(order).limit(page.limit + 1)


def _lasts() -> Any:
    return or_(files.c.expires_at.is_(None), files.c.expires_at > int(time.time()))


def _record(row: Any) -> FileRecord:
    return FileRecord(**{**row, "purpose": Purpose(row["purpose"])})
