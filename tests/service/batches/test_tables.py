from __future__ import annotations

import sqlite3

import pytest

from service.batches.errors import StorageError
from service.batches.tables import open_database


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
