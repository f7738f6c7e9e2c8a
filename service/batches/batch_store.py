"""Batches and their lines, as rows.

What a line was answered is committed together with its being answered, so that a line is either
answered once and for all or runs again. Output files are made of these rows in one go, in the
transaction that ends the batch. Used from one thread.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, insert, select, update

from service.batches.file_store import paged
from service.batches.records import (
    OPEN,
    BatchRecord,
    BatchStatus,
    FileRecord,
    LineFault,
    LineRecord,
    LineResult,
    Purpose,
)
from service.batches.result_lines import unanswered_line
from service.batches.tables import batches, give_back, lines

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection, Engine

    from service.batches.file_store import FileStore, Page

_INSERTED_AT_ONCE = 500
_READ_AT_ONCE = 100


class BatchStore:
    """The batches of one database."""

    def __init__(self, database: Engine, files: FileStore) -> None:
        self._database = database
        self._files = files

    def add(self, values: Mapping[str, Any]) -> BatchRecord:
        """Take in a new batch, which is to be validated."""
        batch_id = f"batch_{secrets.token_hex(16)}"
        row = {**values, "id": batch_id, "status": BatchStatus.VALIDATING.value}
        row["metadata"] = None if row["metadata"] is None else json.dumps(row["metadata"])
        with self._database.begin() as connection:
            connection.execute(insert(batches).values(row))
            # In the same transaction: whoever cannot be told of a batch has none.
            return _by_id(connection, batch_id)

    def get(self, batch_id: str) -> BatchRecord:
        """Return a batch that there is."""
        with self._database.connect() as connection:
            return _by_id(connection, batch_id)

    def find(self, batch_id: str, owner: str) -> BatchRecord | None:
        """Return an owner's batch of this id."""
        wanted = select(batches).where(batches.c.id == batch_id, batches.c.owner == owner)
        with self._database.connect() as connection:
            row = connection.execute(wanted).mappings().first()
        return None if row is None else _record(row)

    def page(self, owner: str, page: Page) -> list[BatchRecord]:
        """Return an owner's batches, one more than asked for where there are more."""
        wanted = paged(select(batches).where(batches.c.owner == owner), batches.c.number, page)
        with self._database.connect() as connection:
            return [_record(row) for row in connection.execute(wanted).mappings()]

    def open_ones(self) -> list[BatchRecord]:
        """Return all that are not over, the oldest first."""
        wanted = select(batches).where(batches.c.status.in_([each.value for each in OPEN]))
        with self._database.connect() as connection:
            rows = connection.execute(wanted.order_by(batches.c.number)).mappings()
            return [_record(row) for row in rows]

    def set_status(self, batch: BatchRecord, status: BatchStatus) -> BatchRecord:
        """Note that a batch has come so far, and when."""
        with self._database.begin() as connection:
            _update(connection, batch, {**_reached(status)})
        return self.get(batch.id)

    def finalize(self, batch: BatchRecord) -> BatchRecord:
        """Note that no line of a batch is run any more, unless it is being cancelled."""
        now = self.get(batch.id)
        if now.status is not BatchStatus.IN_PROGRESS:
            return now
        return self.set_status(now, BatchStatus.FINALIZING)

    # Lines

    def begin(self, batch: BatchRecord, found: Sequence[LineRecord]) -> BatchRecord:
        """Take in the lines of a batch whose file has no faults."""
        with self._database.begin() as connection:
            connection.execute(delete(lines).where(lines.c.batch == batch.number))
            for start in range(0, len(found), _INSERTED_AT_ONCE):
                rows = [
                    {
                        "batch": batch.number,
                        "number": line.number,
                        "custom_id": line.custom_id,
                        "offset": line.offset,
                        "num_bytes": line.num_bytes,
                    }
                    for line in found[start : start + _INSERTED_AT_ONCE]
                ]
                connection.execute(insert(lines), rows)
            reached = _reached(BatchStatus.IN_PROGRESS)
            _update(connection, batch, {**reached, "num_lines": len(found)})
            self._files.measure_database(connection)
        return self.get(batch.id)

    def fail(self, batch: BatchRecord, faults: Sequence[LineFault]) -> BatchRecord:
        """End a batch whose file has faults."""
        told = [
            {"code": each.code, "message": each.message, "line": each.line, "param": each.param}
            for each in faults
        ]
        with self._database.begin() as connection:
            _update(connection, batch, {**_reached(BatchStatus.FAILED), "faults": json.dumps(told)})
        self._files.measure()  # its file is not in use any more
        return self.get(batch.id)

    def unanswered(self, batch: BatchRecord, after: int) -> list[LineRecord]:
        """Return the next lines behind a number that have no answer, some of them."""
        wanted = (
            select(lines.c.number, lines.c.custom_id, lines.c.offset, lines.c.num_bytes)
            .where(lines.c.batch == batch.number, lines.c.number > after)
            .where(lines.c.has_failed.is_(None))
            .order_by(lines.c.number)
            .limit(_READ_AT_ONCE)
        )
        with self._database.connect() as connection:
            return [LineRecord(**row) for row in connection.execute(wanted).mappings()]

    def answer(self, batch: BatchRecord, result: LineResult) -> None:
        """Keep what a line was answered; one that has an answer keeps that."""
        own = (lines.c.batch == batch.number) & (lines.c.number == result.number)
        with self._database.begin() as connection:
            done = connection.execute(
                update(lines)
                .where(own, lines.c.has_failed.is_(None))
                .values(has_failed=result.has_failed, result=result.text)
            )
            if done.rowcount:
                count = batches.c.num_failed if result.has_failed else batches.c.num_completed
                _update(connection, batch, {count.name: count + 1})
            self._files.measure_database(connection)

    # Ends

    def finish(self, batch: BatchRecord, status: BatchStatus) -> BatchRecord:
        """Make the output files of a batch's lines, and end it.

        status: COMPLETED, EXPIRED or CANCELLED. Lines without an answer are told among the errors.
        One that is over stays as it is.
        """
        now = self.get(batch.id)
        if not now.status.is_open:
            return now
        output, errors = self._new_file(batch, "output"), self._new_file(batch, "error")
        try:
            with self._database.begin() as connection:
                names = self._write(connection, batch, status, output, errors)
                _update(connection, batch, {**_reached(status), **names})
                _update(connection, batch, {"num_failed": _num_failed(connection, batch)})
                connection.execute(delete(lines).where(lines.c.batch == batch.number))
        except BaseException:
            for each in (output, errors):  # of a disk that is full, the last to be left behind
                self._files.discard(each.id)
            raise
        finally:
            self._files.discard_part(output.id)
            self._files.discard_part(errors.id)
            self._files.measure()
        return self.get(batch.id)

    def give_back_space(self) -> bool:
        """Give some of what results took back to the disk; return whether there is more."""
        return give_back(self._database)

    def _write(
        self,
        connection: Connection,
        batch: BatchRecord,
        status: BatchStatus,
        output: FileRecord,
        errors: FileRecord,
    ) -> dict[str, Any]:
        """Write both files; return the columns that name those that hold anything."""
        output_path, errors_path = (self._files.part_of(each.id) for each in (output, errors))
        with output_path.open("wb") as output_file, errors_path.open("wb") as errors_file:
            for row in _all_lines(connection, batch):
                text = row["result"] or unanswered_line(row["custom_id"], status)
                file = output_file if row["has_failed"] is False else errors_file
                file.write(text + b"\n")
        names: dict[str, Any] = {}
        for column, record in (("output_file_id", output), ("error_file_id", errors)):
            num_bytes = self._files.part_of(record.id).stat().st_size
            if num_bytes:
                self._files.add_within(connection, replace(record, num_bytes=num_bytes))
                names[column] = record.id
        return names

    def _new_file(self, batch: BatchRecord, kind: str) -> FileRecord:
        now, lasts = int(time.time()), batch.output_expires_after_s
        return FileRecord(
            number=0,
            id=self._files.new_id(),
            owner=batch.owner,
            filename=f"{batch.id}_{kind}.jsonl",
            purpose=Purpose.BATCH_OUTPUT,
            num_bytes=0,
            created_at=now,
            expires_at=None if lasts is None else now + lasts,
        )


def _all_lines(connection: Connection, batch: BatchRecord) -> Any:
    wanted = (
        select(lines.c.custom_id, lines.c.has_failed, lines.c.result)
        .where(lines.c.batch == batch.number)
        .order_by(lines.c.number)
        .execution_options(yield_per=_READ_AT_ONCE)
    )
    return connection.execute(wanted).mappings()


def _num_failed(connection: Connection, batch: BatchRecord) -> int:
    """Count the lines that have no answer, or one that is an error."""
    wanted = (
        select(func.count())
        .select_from(lines)
        .where(lines.c.batch == batch.number, lines.c.has_failed.is_not(False))
    )
    return int(connection.execute(wanted).scalar_one())


def _reached(status: BatchStatus) -> dict[str, Any]:
    return {"status": status.value, f"{status.value}_at": int(time.time())}


def _update(connection: Connection, batch: BatchRecord, values: Mapping[str, Any]) -> None:
    connection.execute(update(batches).where(batches.c.number == batch.number).values(values))


def _by_id(connection: Connection, batch_id: str) -> BatchRecord:
    wanted = select(batches).where(batches.c.id == batch_id)
    return _record(connection.execute(wanted).mappings().one())


def _record(row: Any) -> BatchRecord:
    told = {
        **row,
        "status": BatchStatus(row["status"]),
        "metadata": None if row["metadata"] is None else json.loads(row["metadata"]),
        "faults": tuple(LineFault(**fault) for fault in json.loads(row["faults"])),
    }
    return BatchRecord(**told)
