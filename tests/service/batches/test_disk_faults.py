from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import pytest
from sqlalchemy.exc import DatabaseError, OperationalError
from structlog.testing import capture_logs

from service.batches import disk_faults
from service.batches.disk_faults import Persistence
from tests.replaced import note_waits

if TYPE_CHECKING:
    from collections.abc import Callable


T = TypeVar("T")


class Disk:
    """Fails as often as is asked for."""

    def __init__(self, *faults: Exception) -> None:
        self.faults = list(faults)
        self.num_asked = 0

    def ask(self) -> str:
        self.num_asked += 1
        if self.faults:
            raise self.faults.pop(0)
        return "done"


async def at_once(work: Callable[[], T]) -> T:
    return work()


def full() -> OSError:
    return OSError(28, "No space left on device")


def locked() -> OperationalError:
    return OperationalError("UPDATE lines SET secret", {}, Exception("database is locked"))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    return note_waits(monkeypatch, disk_faults)


def test_it_is_tried_again_with_waits_that_grow_and_told_once(waits):
    disk = Disk(locked(), full(), *(full() for _ in range(6)))
    with capture_logs() as logs:
        assert asyncio.run(Persistence("b1").until_done(disk.ask, at_once)) == "done"
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert [(line["event"], line["batch"]) for line in logs] == [
        ("batch_stopped", "b1"),
        ("batch_goes_on", "b1"),
    ]
    assert (logs[0]["log_level"], logs[0]["reason"]) == ("error", "database is locked")


def test_without_a_fault_nothing_is_said(waits):
    with capture_logs() as logs:
        assert asyncio.run(Persistence("b1").until_done(Disk().ask, at_once)) == "done"
    assert (logs, waits) == ([], [])


@pytest.mark.parametrize(
    "error", [ValueError("x"), DatabaseError("", {}, Exception("malformed")), KeyError("x")]
)
def test_what_no_wait_mends_is_raised(waits, error):
    with pytest.raises(type(error)):
        asyncio.run(Persistence("b1").until_done(Disk(error).ask, at_once))
    assert waits == []


def test_one_tries_for_all_and_the_rest_follows_at_once(monkeypatch):
    monkeypatch.setattr(disk_faults, "FIRST_WAIT_S", 0.01)

    async def check() -> None:
        faulty = True
        asking: list[int] = []

        def attempt(number: int) -> int:
            asking.append(number)
            if faulty:
                raise full()
            return number

        persistence = Persistence("b1")
        tasks = [
            asyncio.create_task(persistence.until_done(partial(attempt, number), at_once))
            for number in range(5)
        ]
        async with asyncio.timeout(10):
            while len(asking) < 4:
                await asyncio.sleep(0.001)
        assert set(asking) == {0}
        assert persistence.is_stopped
        faulty = False
        assert await asyncio.gather(*tasks) == [0, 1, 2, 3, 4]
        assert not persistence.is_stopped

    with capture_logs() as logs:
        asyncio.run(check())
    assert [line["event"] for line in logs] == ["batch_stopped", "batch_goes_on"]


def test_another_tries_where_who_tried_for_all_was_cancelled(monkeypatch):
    monkeypatch.setattr(disk_faults, "FIRST_WAIT_S", 0.01)

    async def check() -> None:
        disk = Disk(full(), full())
        persistence = Persistence("b1")
        first, second = (
            asyncio.create_task(persistence.until_done(disk.ask, at_once)) for _ in range(2)
        )
        await asyncio.sleep(0)
        first.cancel()
        assert await asyncio.wait_for(second, 10) == "done"
        assert not persistence.is_stopped

    asyncio.run(check())


def test_what_waited_for_the_thread_while_the_disk_failed_is_not_tried_there(monkeypatch):
    monkeypatch.setattr(disk_faults, "FIRST_WAIT_S", 0.05)

    async def check() -> None:
        tried: list[int] = []

        def slow(number: int) -> None:
            tried.append(number)
            time.sleep(0.02)  # as SQLite, of a database that is locked
            if len(tried) < 6:
                raise locked()

        with ThreadPoolExecutor(1) as pool:

            async def in_thread(work: Callable[[], T]) -> T:
                return await asyncio.get_running_loop().run_in_executor(pool, work)

            persistence = Persistence("b1")
            await asyncio.gather(
                *(persistence.until_done(partial(slow, number), in_thread) for number in range(20))
            )
        assert sorted(set(tried)) == list(range(20))
        assert len(tried) == 20 + 5
        # The second may have begun before it was known that the first had failed.
        assert set(tried[2:6]) == {0}

    asyncio.run(check())
