"""The tables, and how the file that holds them is opened.

SQLite with a log written ahead: what was committed survives the process being killed at any moment.
A cut of power may take back the last commits, and with them whole lines, which then run again.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    text,
)
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.pool import StaticPool

from service.batches.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Connection, Engine

SCHEMA_VERSION = 1
# For so long another program's lock is waited for, and with it whoever wants the one thread.
LOCKED_S = 0.5
_PAGES_AT_ONCE = 512  # 2 MiB, in some 10 ms

schema = MetaData()

files = Table(
    "files",
    schema,
    Column("number", Integer, primary_key=True),
    Column("id", String, nullable=False, unique=True),
    Column("owner", String, nullable=False, index=True),
    Column("filename", String, nullable=False),
    Column("purpose", String, nullable=False),
    Column("num_bytes", Integer, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("expires_at", Integer),
)

batches = Table(
    "batches",
    schema,
    Column("number", Integer, primary_key=True),
    Column("id", String, nullable=False, unique=True),
    Column("owner", String, nullable=False, index=True),
    Column("input_file_id", String, nullable=False),
    Column("endpoint", String, nullable=False),
    Column("completion_window", String, nullable=False),
    Column("status", String, nullable=False, index=True),
    Column("created_at", Integer, nullable=False),
    Column("expires_at", Integer, nullable=False),
    Column("metadata", String),  # JSON
    Column("output_expires_after_s", Integer),
    Column("faults", String, nullable=False, default="[]"),  # JSON
    Column("output_file_id", String),
    Column("error_file_id", String),
    Column("num_lines", Integer, nullable=False, default=0),
    Column("num_completed", Integer, nullable=False, default=0),
    Column("num_failed", Integer, nullable=False, default=0),
    *(
        Column(f"{status}_at", Integer)
        for status in (
            "in_progress",
            "finalizing",
            "completed",
            "failed",
            "expired",
            "cancelling",
            "cancelled",
        )
    ),
)

lines = Table(
    "lines",
    schema,
    Column("batch", Integer, ForeignKey("batches.number"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("custom_id", String, nullable=False),
    Column("offset", Integer, nullable=False),
    Column("num_bytes", Integer, nullable=False),
    Column("has_failed", Boolean),  # NULL until it was answered
    Column("result", LargeBinary),
    Index("custom_ids", "batch", "custom_id", unique=True),
)


def open_database(path: Path) -> Engine:
    """Return the database, made where there was none. Raises StorageError.

    Its one connection is for one thread at a time.
    """
    engine = create_engine(
        f"sqlite:///{path}",
        poolclass=StaticPool,
        connect_args={"check_same_thread": False, "timeout": LOCKED_S},
    )
    event.listen(engine, "connect", _prepare)
    try:
        with engine.begin() as connection:
            _take_over(connection, path)
    except DatabaseError as error:
        engine.dispose()
        raise StorageError(f"{path.name} cannot be used: {error.orig}") from error
    except StorageError:
        engine.dispose()
        raise
    return engine


def _take_over(connection: Connection, path: Path) -> None:
    """Make the tables of a new database, or see that they are ours."""
    version = connection.execute(text("PRAGMA user_version")).scalar_one()
    if version not in (0, SCHEMA_VERSION):
        raise StorageError(
            f"{path.name} was written by another version of this server (schema {version}); move it"
            " away, or set state_dir"
        )
    schema.create_all(connection)
    connection.execute(text(f"PRAGMA user_version = {SCHEMA_VERSION}"))


def _prepare(connection: Any, _: object) -> None:
    for pragma in (
        "auto_vacuum = INCREMENTAL",  # of a new one: first, as it is written with the first page
        "journal_mode = WAL",
        f"journal_size_limit = {_PAGES_AT_ONCE * 4096}",
        "synchronous = NORMAL",
        "foreign_keys = ON",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def used_bytes(connection: Connection) -> int:
    """Return how much of its file the database uses; the rest is for what comes, or given back."""
    num_pages = _number(connection, "page_count") - _number(connection, "freelist_count")
    return num_pages * _number(connection, "page_size")


def give_back(database: Engine) -> bool:
    """Give some of what the file does not use back to the disk; return whether there is more.

    Raises OperationalError, as what SQLAlchemy executes does.
    """
    connection = database.raw_connection()
    cursor = connection.cursor()

    def num_free() -> int:
        return int(cursor.execute("PRAGMA freelist_count").fetchone()[0])

    try:
        before = num_free()
        # As a script, for `execute` takes one step of it, which is one page.
        cursor.executescript(f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE})")
        after = num_free()
        has_more = 0 < after < before  # one that an earlier version made keeps what it has
        if not has_more and after < before:
            shorten_log(database)
        return has_more
    except sqlite3.Error as error:
        raise OperationalError("incremental_vacuum", None, error) from error
    finally:
        cursor.close()
        connection.close()


def shorten_log(database: Engine) -> None:
    """Have the database take in all of its log, which then needs no room."""
    with database.connect() as connection:
        connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))


def _number(connection: Connection, pragma: str) -> int:
    return int(connection.execute(text(f"PRAGMA {pragma}")).scalar_one())
