"""A reading that says nothing has not begun, unless it was for want of memory."""

from __future__ import annotations

import ctypes
import faulthandler
import json
import signal
import threading

import pytest
from llguidance import LLMatcher

from service.grammars import reading_worker
from service.grammars.limits import PARSER_LIMITS
from service.grammars.reading import _LIMITS
from service.grammars.reading_worker import in_fork


def answer() -> object:
    request = {
        "grammar": LLMatcher.grammar_from_regex("ab"),
        "limits": {name: getattr(PARSER_LIMITS, name) for name in _LIMITS},
        "slices": [],
        "cpu_s": 5.0,
        "niceness": 0,
    }
    return json.loads(in_fork(request, ctypes.CDLL(None)))


def test_a_grammar_is_read_in_a_fork():
    assert answer() == {"refused": None}


def test_a_fork_that_gets_no_thread_tells_nothing_of_the_grammar(monkeypatch):
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert answer() == {"ended": 0}


@pytest.mark.parametrize("place", ["begin", "reading", "telling"])
def test_want_of_memory_is_told_wherever_it_is_met(monkeypatch, place):
    def fail(*_args: object) -> None:
        faulthandler.disable()  # in the fork, whose end is expected
        raise MemoryError

    if place == "begin":
        monkeypatch.setattr(threading, "stack_size", fail)
    elif place == "reading":
        monkeypatch.setattr(reading_worker, "tried", fail)
    else:  # what a library's panic says may be long
        monkeypatch.setattr(reading_worker, "refusal", fail)
    assert answer() == {"ended": signal.SIGABRT}
