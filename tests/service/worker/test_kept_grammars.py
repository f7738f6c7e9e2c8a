"""Grammars that are kept: as many as may be, by number and by what reading them took."""

from __future__ import annotations

import threading
import time

import pytest

from service.worker.kept_grammars import KeptGrammars


class FakeMatcher:
    """Stands for a matcher at its beginning."""

    def __init__(self, grammar: str) -> None:
        self.grammar = grammar
        self.num_copies = 0

    def deep_copy(self) -> str:
        self.num_copies += 1
        return f"{self.grammar} {self.num_copies}"


class Reading:
    """Reads fake grammars, and notes which."""

    def __init__(self, kept: KeptGrammars) -> None:
        self.kept = kept
        self.read: list[str] = []

    def copy_of(self, grammar: str, cpu_s: float = 0) -> object:
        def read() -> FakeMatcher:
            self.read.append(grammar)
            end = time.thread_time() + cpu_s
            while time.thread_time() < end:
                pass
            return FakeMatcher(grammar)

        return self.kept.copy_of(grammar, read)  # type: ignore[arg-type]


def test_who_asks_again_gets_a_copy_of_what_was_read():
    grammars = Reading(KeptGrammars())
    assert grammars.copy_of("a") == "a 1"
    assert grammars.copy_of("a") == "a 2"
    assert grammars.read == ["a"]


def test_those_that_were_asked_for_last_are_kept():
    grammars = Reading(KeptGrammars(max_kept=2))
    for name in ("a", "b", "a", "c", "a", "b"):
        grammars.copy_of(name)
    assert grammars.read == ["a", "b", "c", "b"]


def test_what_took_long_to_read_leaves_room_for_less():
    grammars = Reading(KeptGrammars(max_kept_s=0.05))
    grammars.copy_of("a")
    grammars.copy_of("b", cpu_s=0.04)
    grammars.copy_of("c", cpu_s=0.03)  # a and b go
    grammars.copy_of("c")
    grammars.copy_of("b")
    assert grammars.read == ["a", "b", "c", "b"]


def test_what_alone_takes_more_than_may_be_kept_is_answered_and_not_kept():
    grammars = Reading(KeptGrammars(max_kept_s=0.01))
    assert grammars.copy_of("a", cpu_s=0.02) == "a 1"
    assert grammars.copy_of("a") == "a 1"
    assert grammars.read == ["a", "a"]


def test_what_is_dropped_or_cannot_be_read_is_not_kept():
    grammars = Reading(KeptGrammars())
    grammars.copy_of("a")
    grammars.kept.drop("a")
    grammars.kept.drop("unknown")
    grammars.copy_of("a")
    assert grammars.read == ["a", "a"]

    def fail() -> FakeMatcher:
        raise ValueError("unreadable")

    with pytest.raises(ValueError, match="unreadable"):
        grammars.kept.copy_of("b", fail)  # type: ignore[arg-type]
    assert grammars.copy_of("b") == "b 1"


def test_a_grammar_that_is_being_read_holds_no_other_up():
    kept = KeptGrammars()
    is_reading, may_go_on = threading.Event(), threading.Event()

    def slowly() -> FakeMatcher:
        is_reading.set()
        may_go_on.wait(20)
        return FakeMatcher("slow")

    thread = threading.Thread(target=kept.copy_of, args=("slow", slowly))
    thread.start()
    try:
        assert is_reading.wait(20)
        assert Reading(kept).copy_of("quick") == "quick 1"
        assert not may_go_on.is_set()
    finally:
        may_go_on.set()
        thread.join()
