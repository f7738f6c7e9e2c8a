from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest

from service.batches.errors import StorageError
from service.batches.tables import give_back, open_database, used_bytes

if TYPE_CHECKING:
    from sqlalchemy import Engine

MEGABYTE = 1024 * 1024


def test_commits_are_written_ahead(tmp_path):
    database = open_database(tmp_path / "db")
    with database.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
    database.dispose()


def test_it_is_opened_again_with_what_it_held(tmp_path):
    for _ in range(2):
        database = open_database(tmp_path / "db")
        with database.begin() as connection:
            connection.exec_driver_sql(
                "INSERT INTO files (id, owner, filename, purpose, num_bytes, created_at)"
                " VALUES (hex(randomblob(8)), 'a', 'b', 'batch', 1, 2)"
            )
        database.dispose()
    with sqlite3.connect(tmp_path / "db") as raw:
        assert raw.execute("SELECT count(*) FROM files").fetchone() == (2,)
    raw.close()


def test_a_database_of_another_version_is_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "db") as raw:
        raw.execute("PRAGMA user_version = 99")
    raw.close()
    with pytest.raises(StorageError, match="99"):
        open_database(tmp_path / "db")


def test_what_is_no_database_is_told(tmp_path):
    (tmp_path / "db").write_bytes(b"this is no database, and long enough to be looked at" * 100)
    with pytest.raises(StorageError, match="cannot be used"):
        open_database(tmp_path / "db")


def fill_and_clear(database: Engine) -> int:
    """Write some megabytes and delete them; return how much was used meanwhile."""
    with database.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE more (blob)")
        for _ in range(500):
            connection.exec_driver_sql("INSERT INTO more VALUES (randomblob(20000))")
        used = used_bytes(connection)
    with database.begin() as connection:
        connection.exec_driver_sql("DROP TABLE more")
    return used


def test_what_was_deleted_counts_no_more_and_is_given_back_to_the_disk(tmp_path):
    path = tmp_path / "db"
    database = open_database(path)
    with database.connect() as connection:
        empty = used_bytes(connection)
    assert fill_and_clear(database) > empty + 8 * MEGABYTE
    with database.connect() as connection:
        assert used_bytes(connection) <= empty + 50_000
    num_steps = 1
    while give_back(database):
        num_steps += 1
    assert 3 <= num_steps <= 10, "so that others get the thread meanwhile"
    on_disk = path.stat().st_size + path.with_name("db-wal").stat().st_size
    assert on_disk < empty + MEGABYTE // 2
    database.dispose()


def test_a_database_that_cannot_give_anything_back_stays_as_it_is(tmp_path):
    with sqlite3.connect(tmp_path / "db") as raw:  # as one was made before space was given back
        raw.execute("CREATE TABLE before (a)")
    raw.close()
    database = open_database(tmp_path / "db")
    fill_and_clear(database)
    assert not give_back(database)
    database.dispose()
