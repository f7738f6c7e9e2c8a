"""What the threads got of the CPUs, and others took, as /proc counts it."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from engine.process.cpu_use import CpuUse, CpuUseReader

if TYPE_CHECKING:
    from pathlib import Path

SECOND = 10**9  # in nanoseconds
WORKER = 7_000_001  # no process has so many threads


class FakeProc:
    """A /proc of three CPUs, of which two may be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ticks = os.sysconf("SC_CLK_TCK")
        self.thread(threading.get_native_id(), 0, 0)
        self.cpus()

    def thread(self, tid: int, ran_s: float, waited_s: float) -> None:
        folder = self.path / "self" / "task" / str(tid)
        folder.mkdir(parents=True, exist_ok=True)
        counts = f"{int(ran_s * SECOND)} {int(waited_s * SECOND)} 12\n"
        (folder / "schedstat").write_text(counts)

    def end_thread(self, tid: int) -> None:
        (self.path / "self" / "task" / str(tid) / "schedstat").unlink()

    def cpus(self, **seconds: float) -> None:
        """Write what CPU 0 was used for; CPU 1 has the same, and CPU 2 a hundred times as much."""
        names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
        counts = [
            int(seconds.get(name, 0) * self.ticks) for name in (*names, "guest", "guest_nice")
        ]
        one = " ".join(map(str, counts))
        many = " ".join(str(100 * count) for count in counts)
        (self.path / "stat").write_text(
            f"cpu  {many}\ncpu0 {one}\ncpu1 {one}\ncpu2 {many}\nintr 1 2 3\n"
        )


@pytest.fixture
def proc(tmp_path, monkeypatch) -> FakeProc:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(os, "getpriority", lambda *_: 0)
    return FakeProc(tmp_path)


def use_after(reader: CpuUseReader) -> CpuUse:
    use = reader.read()
    assert use is not None
    return use


def test_each_reading_tells_what_came_since_the_one_before(proc):
    reader = CpuUseReader(proc.path)
    proc.thread(threading.get_native_id(), 1.5, 0.25)
    proc.thread(WORKER, 1.0, 0.5)
    proc.cpus(user=2.0)
    assert use_after(reader) == CpuUse(2.5, 0.75, 1.5, 2)
    proc.thread(WORKER, 1.5, 0.5)
    assert use_after(reader) == CpuUse(0.5, 0.0, 0.0, 2)


def test_only_cpus_that_may_be_used_count_and_only_what_was_taken_of_them(proc):
    reader = CpuUseReader(proc.path)
    proc.cpus(user=1, system=2, irq=3, softirq=4, steal=5, idle=60, iowait=70, nice=80, guest=1)
    assert use_after(reader).others_s == 2 * (1 + 2 + 3 + 4 + 5)


def test_processes_of_a_lower_priority_count_beside_an_engine_of_such(proc, monkeypatch):
    reader = CpuUseReader(proc.path)
    proc.cpus(nice=3)
    assert use_after(reader).others_s == 0
    monkeypatch.setattr(os, "getpriority", lambda *_: 5)
    proc.cpus(nice=4)
    assert use_after(reader).others_s == 8


def test_threads_of_python_s_other_than_the_one_that_asks_are_company(proc):
    reader, is_over = CpuUseReader(proc.path), threading.Event()
    other = threading.Thread(target=is_over.wait)
    other.start()
    try:
        assert other.native_id is not None
        proc.thread(other.native_id, 1.0, 1.0)
        proc.cpus(user=0.5)
        assert use_after(reader) == CpuUse(0.0, 0.0, 1.0, 2)
    finally:
        is_over.set()
        other.join()


def test_a_thread_that_has_ended_takes_nothing_back(proc):
    proc.thread(WORKER, 9.0, 9.0)
    reader = CpuUseReader(proc.path)
    proc.end_thread(WORKER)
    assert use_after(reader) == CpuUse(0.0, 0.0, 0.0, 2)


def test_other_cpus_than_before_say_nothing_of_the_time_between(proc, monkeypatch):
    proc.cpus(user=1000)
    reader = CpuUseReader(proc.path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert reader.read() is None  # CPU 2 was busy long before it was ours
    proc.cpus(user=1001)
    assert use_after(reader) == CpuUse(0.0, 0.0, 102.0, 3)


def test_a_reading_that_failed_says_nothing_of_the_time_before_the_next(proc, monkeypatch):
    reader = CpuUseReader(proc.path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "sched_getaffinity", lambda _: {0, 9})
        proc.cpus(user=5)
        assert reader.read() is None
    assert reader.read() is None
    proc.cpus(user=6)
    assert use_after(reader).others_s == 2


def test_where_waiting_is_not_counted_nothing_is_read(proc):
    proc.end_thread(threading.get_native_id())
    reader = CpuUseReader(proc.path)
    assert not reader.is_possible
    assert reader.read() is None


def test_without_a_proc_nothing_is_read(tmp_path):
    assert not CpuUseReader(tmp_path / "none").is_possible


def test_a_proc_that_does_not_show_the_cpus_is_not_believed(proc, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 9})
    assert not CpuUseReader(proc.path).is_possible


def test_this_machine_s_own_is_understood():
    reader = CpuUseReader()
    if not reader.is_possible:
        pytest.skip("this system does not count in /proc what threads wait for CPUs")
    # the system adds a running thread's time up at its ticks, up to 10 ms apart
    until = time.thread_time() + 0.1
    while time.thread_time() < until:
        pass
    use = use_after(reader)
    assert use.computed_s > 0
    assert use.num_cpus == len(os.sched_getaffinity(0))
