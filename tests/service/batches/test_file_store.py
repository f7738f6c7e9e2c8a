from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from service.batches.file_store import FileStore, Page
from service.batches.records import FileRecord, Purpose
from service.batches.tables import open_database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStore]:
    database = open_database(tmp_path / "db")
    yield FileStore(database, tmp_path / "files")
    database.dispose()


def kept(store: FileStore, owner: str = "me", size: int = 3, lasts_s: int | None = None) -> str:
    file_id = store.new_id()
    store.part_of(file_id).write_bytes(b"x" * size)
    now = int(time.time())
    record = FileRecord(
        number=0,
        id=file_id,
        owner=owner,
        filename="../../etc/passwd",
        purpose=Purpose.BATCH,
        num_bytes=size,
        created_at=now,
        expires_at=None if lasts_s is None else now + lasts_s,
    )
    store.add(record)
    return file_id


def test_a_file_is_found_by_its_id_and_only_by_whom_it_is_of(store):
    file_id = kept(store)
    found = store.find(file_id, "me")
    assert found is not None
    assert (found.id, found.filename, found.num_bytes) == (file_id, "../../etc/passwd", 3)
    assert store.find(file_id, "somebody else") is None
    assert store.find("../../etc/passwd", "me") is None
    assert store.path_of(found.id).read_bytes() == b"xxx"


def test_a_file_whose_content_cannot_be_removed_is_gone_for_its_owner_and_counts_no_more(store):
    stuck, other = kept(store, lasts_s=-1), kept(store, lasts_s=-1)
    for file_id in (stuck, other):
        store.path_of(file_id).unlink()
    store.path_of(min(stuck, other)).mkdir()  # is not unlinked
    store.path_of(max(stuck, other)).write_bytes(b"xxx")
    with capture_logs() as logs:
        store.remove_expired(set())
    assert [(each["event"], each["file"]) for each in logs] == [
        ("file_content_stays", min(stuck, other))
    ]
    assert not store.path_of(max(stuck, other)).exists()
    assert (store.num_bytes, store.page("me", Page())) == ({}, [])


def test_pages_follow_each_other_in_both_orders(store):
    ids = [kept(store) for _ in range(5)]
    kept(store, "somebody else")
    first = store.page("me", Page(limit=2))
    assert [each.id for each in first] == [ids[4], ids[3], ids[2]]  # one more tells of more
    rest = store.page("me", Page(limit=3, after=first[1].number))
    assert [each.id for each in rest] == [ids[2], ids[1], ids[0]]
    oldest = store.page("me", Page(limit=2, is_newest_first=False))
    assert [each.id for each in oldest] == ids[:3]
    assert store.page("me", Page(limit=9), "batch_output") == []


def test_a_removed_file_leaves_nothing(store):
    file_id = kept(store, size=5)
    kept(store, size=7)
    assert store.num_bytes == {"me": 12}
    store.remove(file_id)
    assert store.find(file_id, "me") is None
    assert not store.path_of(file_id).exists()
    assert store.num_bytes == {"me": 7}


def test_what_a_dead_process_left_is_removed_and_what_it_kept_is_not(store):
    file_id = kept(store)
    store.part_of(store.new_id()).write_bytes(b"half an upload")
    store.path_of(store.new_id()).write_bytes(b"renamed, but not committed")
    store.remove_leftovers()
    assert [path.name for path in store.path_of(file_id).parent.iterdir()] == [file_id]


def test_an_expired_file_is_not_found_and_goes_unless_it_is_in_use(store):
    gone, used, lasting = (kept(store, lasts_s=lasts_s) for lasts_s in (-1, -1, 100))
    assert store.find(gone, "me") is None
    assert [each.id for each in store.page("me", Page())] == [lasting]
    store.remove_expired({used})
    assert not store.path_of(gone).exists()
    assert store.path_of(used).exists()
    assert store.path_of(lasting).exists()


def test_it_is_known_when_the_next_file_expires(store):
    assert store.next_expiry() is None
    for lasts_s in (None, -1, 100, 50):
        kept(store, lasts_s=lasts_s)
    expires_at = store.next_expiry()
    assert expires_at is not None
    assert 45 < expires_at - time.time() < 55


def test_a_content_is_discarded_only_without_a_row(store):
    file_id, stray = kept(store), store.new_id()
    store.path_of(stray).write_bytes(b"x")
    for each in (file_id, stray):
        store.discard(each)
    assert store.path_of(file_id).exists()
    assert not store.path_of(stray).exists()


def test_ids_cannot_be_guessed(store):
    ids = {store.new_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(each) >= 32 for each in ids)
