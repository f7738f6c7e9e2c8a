"""Grammars wait as sequences do: they are counted, their time runs, the background comes apart."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from engine.errors import DeadlineExceededError
from engine.process.grammar_reader import GrammarReader
from tests.engine.fake_engine import FakeConstraint, FakeEngine
from tests.engine.fake_runner import request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.request import SequenceRequest

PATIENCE_S = 20


class Reading:
    """A reader whose grammars are read when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.begun: list[int] = []
        self.may_go_on = threading.Event()
        self.was_read = threading.Semaphore(0)
        self.reader = GrammarReader(self._read, self.was_read.release, lambda: self.now)

    def _read(self, asked: SequenceRequest) -> FakeConstraint:
        self.begun.append(asked.sequence_id)
        if asked.grammar == "long":
            self.may_go_on.wait(PATIENCE_S)
        return FakeConstraint(str(asked.grammar))

    def begin(self, sequence_id: int, grammar: str, **terms: object) -> None:
        self.reader.begin(request(sequence_id, 3, grammar=grammar, **terms))

    def wait(self, num_read: int) -> None:
        for _ in range(num_read):
            assert self.was_read.acquire(timeout=PATIENCE_S)

    def taken(self) -> dict[int, object]:
        return {asked.sequence_id: read for asked, read in self.reader.take_read()}


@contextmanager
def reading() -> Iterator[Reading]:
    made = Reading()
    try:
        yield made
    finally:
        made.may_go_on.set()
        made.reader.close()


def test_grammars_of_the_background_hold_nobody_up():
    with reading() as grammars:
        grammars.begin(1, "long", is_background=True)
        grammars.begin(2, "short")
        grammars.wait(1)
        assert grammars.taken() == {2: FakeConstraint("short")}
        grammars.may_go_on.set()
        grammars.wait(1)
        assert grammars.taken() == {1: FakeConstraint("long")}


def test_time_runs_while_a_grammar_is_read():
    with reading() as grammars:
        grammars.begin(1, "short", timeout_s=5)
        grammars.wait(1)
        grammars.now = 3
        ((asked, read),) = grammars.reader.take_read()
        assert read == FakeConstraint("short")
        assert asked.timeout_s == 2


def test_whose_time_is_over_is_told_though_others_are_read_still_and_is_not_read():
    with reading() as grammars:
        grammars.begin(1, "long")
        grammars.begin(2, "short", timeout_s=5)
        grammars.now = 4.9
        assert grammars.taken() == {}
        grammars.now = 5
        ((sequence_id, error),) = grammars.taken().items()
        assert sequence_id == 2
        assert isinstance(error, DeadlineExceededError)
        grammars.may_go_on.set()
        grammars.begin(3, "short")
        grammars.wait(3)  # one of them was let go
        assert set(grammars.taken()) == {1, 3}
        assert grammars.begun == [1, 3]


def test_who_waits_for_a_grammar_is_counted_as_waiting():
    statistics = FakeEngine().statistics()
    with reading() as grammars:
        assert grammars.reader.counted(statistics) is statistics
        grammars.begin(1, "long")
        grammars.begin(2, "long")
        grammars.begin(3, "long", is_background=True)
        counted = grammars.reader.counted(statistics)
        assert (counted.num_waiting, counted.num_queued_seqs, counted.num_queued_tokens) == (
            2,
            2,
            6,
        )
        assert counted.num_background_waiting == 1
        grammars.reader.drop(1)
        assert grammars.reader.counted(statistics).num_queued_seqs == 1
