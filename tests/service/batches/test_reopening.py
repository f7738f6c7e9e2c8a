from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from service.batches import reopening
from service.batches.disk_faults import FIRST_WAIT_S, LONGEST_WAIT_S
from service.batches.errors import FolderTakenError, StorageError
from service.batches.folder import TAKEN_WAIT_S
from service.batches.reopening import Reopening
from tests.replaced import note_waits


def taken() -> FolderTakenError:
    return FolderTakenError("another server has it", retry_after_s=5)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    return note_waits(monkeypatch, reopening)


def reopen(tmp_path: object, *faults: Exception) -> list[str]:
    """Try until it is open; return the events that were logged."""
    left = list(faults)

    async def open_it() -> None:
        if left:
            raise left.pop(0)

    async def run() -> None:
        own = Reopening(tmp_path, open_it)
        await own.begin()
        assert own.is_waiting == bool(faults)
        if own._task is not None:
            await own._task
        assert not own.is_waiting

    with capture_logs() as logs:
        asyncio.run(run())
    return [f"{each['log_level']} {each['event']}" for each in logs]


def test_a_folder_that_opens_at_once_is_nothing_to_tell(tmp_path, waits):
    assert reopen(tmp_path) == []
    assert waits == []


def test_another_servers_folder_is_asked_for_at_a_pace_and_told_once(tmp_path, waits):
    told = reopen(tmp_path, *[taken()] * 9)
    assert told == ["warning batches_unavailable", "info batches_available"]
    assert waits == [TAKEN_WAIT_S] * 9


def test_waits_for_a_disk_grow(tmp_path, waits):
    told = reopen(tmp_path, *[StorageError("the disk is gone")] * 9)
    assert told == ["error batches_unavailable", "info batches_available"]
    assert waits[:3] == [FIRST_WAIT_S, 2 * FIRST_WAIT_S, 4 * FIRST_WAIT_S]
    assert waits[-1] == LONGEST_WAIT_S


def test_a_fault_that_is_none_of_the_disk_is_told_and_tried_again_too(tmp_path, waits):
    told = reopen(tmp_path, StorageError("the disk is gone"), *[RuntimeError("of ours")] * 2)
    assert told == [
        "error batches_unavailable",
        "error batches_unavailable",
        "info batches_available",
    ]
    assert waits == [FIRST_WAIT_S, 2 * FIRST_WAIT_S, 4 * FIRST_WAIT_S]


def test_another_reason_is_told_again(tmp_path, waits):
    told = reopen(tmp_path, taken(), StorageError("the disk is gone"))
    assert told == [
        "warning batches_unavailable",
        "error batches_unavailable",
        "info batches_available",
    ]


def test_it_ends_while_it_waits(tmp_path):
    async def open_it() -> None:
        raise taken()

    async def run() -> None:
        own = Reopening(tmp_path, open_it)
        await own.begin()
        await asyncio.wait_for(own.close(), 1)
        assert not own.is_waiting

    asyncio.run(run())
