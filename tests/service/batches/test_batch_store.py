from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy

from service.batches.batch_store import BatchStore
from service.batches.file_store import FileStore, Page
from service.batches.records import BatchRecord, BatchStatus, LineFault, LineRecord, LineResult
from service.batches.result_lines import answered_line
from service.batches.tables import open_database
from tests.service.kept_batches import empty, fill

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def files(tmp_path: Path) -> Iterator[FileStore]:
    database = open_database(tmp_path / "db")
    yield FileStore(database, tmp_path / "files")
    database.dispose()


@pytest.fixture
def store(files: FileStore) -> BatchStore:
    return BatchStore(files._database, files)


def new(store: BatchStore, owner: str = "me", **values: Any) -> BatchRecord:
    now = int(time.time())
    own = {
        "owner": owner,
        "input_file_id": "file-1",
        "endpoint": "/v1/completions",
        "completion_window": "24h",
        "metadata": {"a": "b"},
        "output_expires_after_s": None,
        "created_at": now,
        "expires_at": now + 86_400,
    }
    return store.add(own | values)


def begun(store: BatchStore, num_lines: int, **values: Any) -> BatchRecord:
    lines = [
        LineRecord(number=number, custom_id=f"r{number}", offset=number * 10, num_bytes=9)
        for number in range(1, num_lines + 1)
    ]
    return store.begin(new(store, **values), lines)


def answer(store: BatchStore, batch: BatchRecord, number: int, status: int = 200) -> None:
    text = answered_line(f"r{number}", status, "req", json.dumps({"n": number}).encode())
    store.answer(batch, LineResult(number=number, text=text, has_failed=status != 200))


def results(files: FileStore, file_id: str | None) -> list[str]:
    if file_id is None:
        return []
    return [
        json.loads(text)["custom_id"] for text in files.path_of(file_id).read_text().splitlines()
    ]


def test_a_batch_is_found_by_its_owner_alone(store):
    batch = new(store)
    assert batch.status is BatchStatus.VALIDATING
    assert batch.metadata == {"a": "b"}
    assert store.find(batch.id, "me") == batch
    assert store.find(batch.id, "somebody else") is None
    assert [each.id for each in store.page("me", Page())] == [batch.id]
    assert store.page("somebody else", Page()) == []


def test_answered_lines_are_not_given_out_again(store):
    batch = begun(store, 250)
    for number in (1, 2, 120):
        answer(store, batch, number)
    seen: list[int] = []
    while lines := store.unanswered(batch, seen[-1] if seen else 0):
        seen += [line.number for line in lines]
    assert seen == [number for number in range(1, 251) if number not in (1, 2, 120)]


def test_results_count_as_room_that_is_taken_until_their_batch_is_over(store, files, tmp_path):
    batch = begun(store, 40)
    files.measure()
    empty = files.database_bytes
    for number in range(1, 41):
        text = json.dumps({"custom_id": f"r{number}", "text": "x" * 50_000}).encode()
        store.answer(batch, LineResult(number=number, text=text, has_failed=False))
    assert files.database_bytes > empty + 40 * 50_000
    assert (tmp_path / "db").stat().st_size + (tmp_path / "db-wal").stat().st_size > 2_000_000
    store.finish(store.get(batch.id), BatchStatus.COMPLETED)
    assert files.database_bytes < empty + 100_000
    while store.give_back_space():
        pass
    assert (tmp_path / "db").stat().st_size < 500_000


def test_a_line_has_one_answer_and_is_counted_once(store, files):
    batch = begun(store, 2)
    answer(store, batch, 1)
    answer(store, batch, 1, status=400)
    answer(store, batch, 2, status=400)
    now = store.get(batch.id)
    assert (now.num_lines, now.num_completed, now.num_failed) == (2, 1, 1)
    done = store.finish(now, BatchStatus.COMPLETED)
    assert results(files, done.output_file_id) == ["r1"]
    assert results(files, done.error_file_id) == ["r2"]


def test_files_are_in_the_order_of_the_lines_and_found_by_the_owner(store, files):
    batch = begun(store, 5)
    for number in (4, 2, 5, 1, 3):
        answer(store, batch, number)
    done = store.finish(batch, BatchStatus.COMPLETED)
    assert done.status is BatchStatus.COMPLETED
    assert done.completed_at is not None
    assert results(files, done.output_file_id) == ["r1", "r2", "r3", "r4", "r5"]
    assert done.error_file_id is None
    assert files.find(done.output_file_id, "me") is not None
    assert files.num_bytes == {"me": files.path_of(done.output_file_id).stat().st_size}


@pytest.mark.parametrize("status", [BatchStatus.CANCELLED, BatchStatus.EXPIRED])
def test_lines_that_were_not_run_are_told_among_the_errors(store, files, status):
    batch = begun(store, 3)
    answer(store, batch, 2)
    done = store.finish(batch, status)
    assert done.status is status
    assert results(files, done.output_file_id) == ["r2"]
    assert results(files, done.error_file_id) == ["r1", "r3"]
    assert (done.num_completed, done.num_failed) == (1, 2)


def test_a_batch_that_could_not_be_ended_is_as_it_was(store, files, monkeypatch):
    batch = begun(store, 2)
    answer(store, batch, 1)
    monkeypatch.setattr(files, "add_within", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.finish(batch, BatchStatus.COMPLETED)
    monkeypatch.undo()
    assert store.get(batch.id).status is BatchStatus.IN_PROGRESS
    files.remove_leftovers()
    answer(store, batch, 2)
    done = store.finish(batch, BatchStatus.COMPLETED)
    assert results(files, done.output_file_id) == ["r1", "r2"]


def test_an_answer_that_comes_after_the_end_changes_nothing(store):
    batch = begun(store, 2)
    done = store.finish(batch, BatchStatus.CANCELLED)
    answer(store, batch, 1)
    assert store.get(batch.id) == done


def test_faults_are_told_and_nothing_is_run(store):
    faults = [
        LineFault(code="a", message="why", line=3, param="p"),
        LineFault(code="b", message=""),
    ]
    failed = store.fail(new(store), faults)
    assert failed.status is BatchStatus.FAILED
    assert list(failed.faults) == faults
    assert store.open_ones() == []


def test_the_same_custom_id_twice_is_refused_whoever_forgot_to_look(store):
    lines = [LineRecord(number=n, custom_id="same", offset=0, num_bytes=1) for n in (1, 2)]
    batch = new(store)
    with pytest.raises(sqlalchemy.exc.IntegrityError):
        store.begin(batch, lines)
    assert store.get(batch.id).status is BatchStatus.VALIDATING


def test_open_batches_are_those_with_something_left_to_do(store):
    first, second, third = begun(store, 1), new(store), begun(store, 1)
    store.set_status(third, BatchStatus.CANCELLING)
    store.finish(first, BatchStatus.COMPLETED)
    assert [each.id for each in store.open_ones()] == [second.id, third.id]


def test_output_files_expire_when_the_batch_says_so(store, files):
    batch = begun(store, 1, output_expires_after_s=3600)
    answer(store, batch, 1)
    done = store.finish(batch, BatchStatus.COMPLETED)
    record = files.find(done.output_file_id, "me")
    assert record.expires_at == record.created_at + 3600


def test_a_full_disk_at_the_end_leaves_no_files_and_the_end_can_be_made_again(store, files):
    batch = begun(store, 2)
    for number, status in ((1, 200), (2, 400)):
        answer(store, batch, number, status)
    files.measure()
    fill(store._database)
    with pytest.raises(sqlalchemy.exc.OperationalError, match="full"):
        store.finish(replace(batch, owner="x" * 100_000), BatchStatus.COMPLETED)
    assert list(files.path_of("x").parent.iterdir()) == []
    empty(store._database)
    done = store.finish(batch, BatchStatus.COMPLETED)
    assert store.finish(batch, BatchStatus.COMPLETED) == done
    assert (done.num_completed, done.num_failed) == (1, 1)
    assert len(list(files.path_of("x").parent.iterdir())) == 2


def test_a_batch_that_is_being_cancelled_is_not_finalized(store):
    batch = begun(store, 1)
    assert store.finalize(batch).status is BatchStatus.FINALIZING
    batch = begun(store, 1)
    store.set_status(batch, BatchStatus.CANCELLING)
    assert store.finalize(batch).status is BatchStatus.CANCELLING


def test_a_batch_that_fails_has_its_file_looked_at_as_it_is_not_in_use_any_more(store, files):
    batch, looks = new(store), []
    files.on_change = lambda: looks.append(store.open_ones())
    store.fail(batch, [LineFault(code="x", message="y")])
    assert looks == [[]]
