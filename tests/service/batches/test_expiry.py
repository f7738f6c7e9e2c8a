from __future__ import annotations

import asyncio
import sqlite3
import time

import pytest
from sqlalchemy.exc import DatabaseError
from structlog.testing import capture_logs

from service.batches import expiry
from service.batches.expiry import Expiry


class Files:
    """Moments at which files expire; notes when it was asked to remove them."""

    def __init__(self, *expiries: float) -> None:
        self.expiries = list(expiries)
        self.num_looks = 0
        self.faults: list[Exception] = []

    async def remove(self) -> float | None:
        self.num_looks += 1
        await asyncio.sleep(0)
        if self.faults:
            raise self.faults.pop()
        now = time.time()
        self.expiries = [each for each in self.expiries if each > now]
        return min(self.expiries, default=None)


def test_files_are_looked_for_when_one_expires_and_not_between():
    async def check() -> None:
        now = time.time()
        files = Files(now + 0.6, now + 0.8, now - 1)
        own = Expiry(files.remove)
        own.look()
        await asyncio.sleep(0.1)
        assert (len(files.expiries), files.num_looks) == (2, 1)
        async with asyncio.timeout(10):
            while files.expiries:
                await asyncio.sleep(0.01)
        assert files.num_looks <= 4  # a timer may be early by a part of a millisecond
        await own.close()

    asyncio.run(check())


def test_a_file_that_comes_later_and_expires_first_is_not_waited_for_too_long():
    async def check() -> None:
        files = Files(time.time() + 100)
        own = Expiry(files.remove)
        own.look()
        await asyncio.sleep(0.05)
        files.expiries.append(time.time() + 0.1)
        own.look()
        await asyncio.sleep(0.4)
        assert len(files.expiries) == 1
        await own.close()

    asyncio.run(check())


def test_what_is_asked_during_a_look_is_looked_at_too():
    async def check() -> None:
        files = Files()
        own = Expiry(files.remove)
        own.look()
        await asyncio.sleep(0)
        for _ in range(3):
            own.look()
        await asyncio.sleep(0.05)
        assert files.num_looks == 2
        await own.close()

    asyncio.run(check())


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (OSError(5, "I/O error"), "I/O error"),
        (DatabaseError("", None, sqlite3.DatabaseError("malformed")), "malformed"),
        (RuntimeError("of ours"), "RuntimeError"),
    ],
)
def test_a_fault_is_told_and_it_is_looked_again(monkeypatch, fault, reason):
    monkeypatch.setattr(expiry, "LONGEST_WAIT_S", 0.05)

    async def check() -> None:
        files = Files(time.time() - 1)
        files.faults = [fault]
        own = Expiry(files.remove)
        with capture_logs() as logs:
            own.look()
            await asyncio.sleep(0.3)
        assert files.expiries == []
        assert [(line["event"], line["reason"]) for line in logs] == [
            ("expired_files_stay", reason)
        ]
        await own.close()

    asyncio.run(check())


def test_nothing_is_removed_after_the_end():
    async def check() -> None:
        files = Files(time.time() + 0.05)
        own = Expiry(files.remove)
        own.look()
        await asyncio.sleep(0.02)
        await own.close()
        await asyncio.sleep(0.1)
        assert len(files.expiries) == 1

    asyncio.run(check())
