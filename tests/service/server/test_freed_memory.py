"""Memory goes back to the system once large requests have ended; seldom, and beside the loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import weakref

from service.server import freed_memory
from service.server.freed_memory import FreedMemory, find_trim, keep_little


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
    keep_little()
    FreedMemory().note()  # needs no event loop, as nothing will be done


def test_what_holds_itself_is_let_go_before_memory_is_given_back():
    class Body(bytearray):
        """As an error's frame would keep it."""

    body = Body(b"x")
    body.myself = body  # type: ignore[attr-defined]
    seen = weakref.ref(body)
    del body
    trim = find_trim()
    assert trim is not None
    trim()
    assert seen() is None


PROGRAM = """
import ctypes, sys
from service.server.freed_memory import keep_little
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
def take(size):
    return ctypes.c_void_p(library.malloc(ctypes.c_size_t(size)))
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
if sys.argv[1] == "little":
    keep_little()
size = 20 * 2**20
library.free(take(size))  # glibc takes its size for one that comes again
before = resident()
large = take(size)
ctypes.memset(large, 1, size)
small = take(100)  # lies behind it, where both are on a heap
library.free(large)
print(resident() - before)
"""


def test_a_large_block_goes_back_at_once_whatever_lies_behind_it():
    def kept(how: str) -> int:
        command = [sys.executable, "-c", PROGRAM, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert kept("little") < 2**20
    assert kept("as it comes") > 10 * 2**20
