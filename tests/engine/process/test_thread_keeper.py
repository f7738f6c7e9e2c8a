"""The number of threads is changed between steps, a few times a second at most, and told."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from engine.process.cpu_use import CpuUse
from engine.process.thread_keeper import INTERVAL_S, LOG_INTERVAL_S, ThreadKeeper

QUIET = CpuUse(computed_s=0.4, waited_s=0.0, others_s=0.0, num_cpus=2)
CROWDED = CpuUse(computed_s=0.2, waited_s=0.2, others_s=0.2, num_cpus=2)


class FakeReader:
    def __init__(self) -> None:
        self.use: CpuUse | None = QUIET
        self.num_readings = 0

    def read(self) -> CpuUse | None:
        self.num_readings += 1
        return self.use


class Kept:
    """A keeper, its clock, and what it has set."""

    def __init__(self) -> None:
        self.now = 50.0
        self.reader, self.numbers = FakeReader(), []
        self.keeper = ThreadKeeper(2, self.numbers.append, self.reader, lambda: self.now)

    def step(self, seconds: float) -> None:
        self.now += seconds
        self.keeper.note_step(seconds)


@pytest.fixture
def kept() -> Kept:
    return Kept()


def test_steps_in_between_read_nothing(kept):
    for _ in range(100):
        kept.step(INTERVAL_S / 10.5)
    assert kept.reader.num_readings == pytest.approx(9, abs=1)


def test_nothing_is_set_where_nothing_changes(kept):
    for _ in range(20):
        kept.step(INTERVAL_S)
    assert kept.numbers == []


def test_a_change_is_set_once_and_told(kept):
    kept.reader.use = CROWDED
    with capture_logs() as lines:
        for _ in range(5):
            kept.step(INTERVAL_S)
    assert kept.numbers == [1]
    told = [(line["event"], line["log_level"], line["threads"], line["of"]) for line in lines]
    assert told == [("threads_changed", "info", 1, 2)]


def test_a_neighbour_that_comes_and_goes_does_not_fill_the_log(kept):
    with capture_logs() as lines:
        began = kept.now
        while kept.now < began + 3 * LOG_INTERVAL_S:
            kept.reader.use = CROWDED if kept.now % 10 < 5 else QUIET
            kept.step(INTERVAL_S)
    assert len(kept.numbers) > 10
    assert len([line for line in lines if line["log_level"] == "info"]) <= 4


def test_the_log_says_in_the_end_how_many_there_are(kept):
    """Beside a neighbour that came and went within the time between two lines."""
    with capture_logs() as lines:
        kept.reader.use = CROWDED
        kept.step(INTERVAL_S)
        kept.reader.use = QUIET
        began = kept.now
        while kept.now < began + LOG_INTERVAL_S + 1:
            kept.step(INTERVAL_S)
    assert [line["threads"] for line in lines if line["log_level"] == "info"] == [1, 2]


def test_what_has_become_again_as_the_log_says_is_not_told(kept):
    with capture_logs() as lines:
        began = kept.now
        while kept.now < began + 2 * LOG_INTERVAL_S:
            kept.reader.use = QUIET if 5 < kept.now - began < 10 else CROWDED
            kept.step(INTERVAL_S)
    assert kept.numbers == [1, 2, 1]
    assert [line["threads"] for line in lines if line["log_level"] == "info"] == [1]


def test_what_cannot_be_read_changes_nothing(kept):
    kept.reader.use = None
    for _ in range(5):
        kept.step(INTERVAL_S)
    assert kept.numbers == []
