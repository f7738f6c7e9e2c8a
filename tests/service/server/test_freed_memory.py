"""Memory goes back to the system once large requests have ended; seldom, and beside the loop."""

from __future__ import annotations

import asyncio
import threading

from service.server import freed_memory
from service.server.freed_memory import FreedMemory, find_trim


def test_many_large_requests_have_it_given_back_once_and_later_ones_again(monkeypatch):
    monkeypatch.setattr(freed_memory, "WAIT_S", 0.0)
    monkeypatch.setattr(freed_memory, "REST_S", 0.01)
    threads: list[int] = []

    async def run() -> None:
        given_back = asyncio.Event()
        loop = asyncio.get_running_loop()

        def trim() -> None:
            threads.append(threading.get_ident())
            loop.call_soon_threadsafe(given_back.set)

        memory = FreedMemory(trim)
        for _ in range(10):
            memory.note()
        await asyncio.wait_for(given_back.wait(), 10)
        given_back.clear()
        assert len(threads) == 1
        memory.note()
        await asyncio.wait_for(given_back.wait(), 10)

    asyncio.run(run())
    assert len(threads) == 2
    assert threading.get_ident() not in threads


def test_where_the_c_library_cannot_nothing_is_done(monkeypatch):
    def fail(name: object) -> None:
        raise OSError

    monkeypatch.setattr(freed_memory.ctypes, "CDLL", fail)
    assert find_trim() is None
    FreedMemory().note()  # needs no event loop, as nothing will be done
