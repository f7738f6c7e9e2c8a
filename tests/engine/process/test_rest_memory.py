"""An engine that rests gives back, once, what its steps have left free."""

from __future__ import annotations

import subprocess
import sys

from engine.process.rest_memory import REST_S, RestMemory


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.num_given = 0

    def memory(self) -> RestMemory:
        return RestMemory(self._give, lambda: self.now)

    def _give(self) -> None:
        self.num_given += 1


def test_an_engine_that_never_stepped_has_nothing_to_wait_for():
    clock = Clock()
    memory = clock.memory()
    memory.give_back_if_due()
    assert memory.wait_s() is None
    assert clock.num_given == 0


def test_memory_is_given_back_once_after_the_last_step():
    clock = Clock()
    memory = clock.memory()
    memory.note_step()
    clock.now += REST_S - 1
    memory.note_step()
    assert memory.wait_s() == REST_S
    clock.now += REST_S - 1
    memory.give_back_if_due()
    assert (memory.wait_s(), clock.num_given) == (1.0, 0)
    clock.now += 1
    memory.give_back_if_due()
    memory.give_back_if_due()
    assert (memory.wait_s(), clock.num_given) == (None, 1)


def test_what_was_freed_and_kept_goes_back():
    code = """
import psutil
from engine.execution.host_memory import keep_freed_memory, return_host_memory
keep_freed_memory()
blocks = [bytearray(200_000) for _ in range(500)]
kept = blocks[::50]
del blocks
resident = lambda: psutil.Process().memory_info().rss / 1e6
before = resident()
return_host_memory()
print(before - resident())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 60
