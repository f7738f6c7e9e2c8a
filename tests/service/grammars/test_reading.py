"""Grammars are read where they can do no harm: what overflows, goes on or grows is refused."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from typing import TYPE_CHECKING

import psutil
import pytest
from llguidance import LLMatcher

from engine.errors import QueueFullError
from service.grammars import reading as module
from service.grammars.errors import InvalidGrammarError
from service.grammars.reading import MAX_WAITING_LONG, GrammarReading
from tests.watching import is_running

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT_S = 1.0


def schema(value: object) -> str:
    return LLMatcher.grammar_from_json_schema(json.dumps(value))


def lark(text: str) -> str:
    return LLMatcher.grammar_from_lark(text)


def regex(pattern: str) -> str:
    return LLMatcher.grammar_from_regex(pattern)


def chain(num_rules: int, rule: str = "r", more: str = "") -> str:
    """A grammar of rules that each name the next."""
    first = "start" if rule == "start" else f"start: {rule}0\n{rule}0"
    rules = [f"{rule}{n - 1}: {rule}{n}{more}" for n in range(2, num_rules)]
    return lark("\n".join([f"{first}: {rule}1", *rules, f'{rule}{num_rules - 1}: "a"']))


DEEP = {
    "bounds of whole numbers": schema({"type": "integer", "minimum": -1e300, "maximum": -1e30}),
    "such bounds within Lark": lark(
        'start: %json {"type": "integer", "minimum": -1e300, "maximum": -1e30}'
    ),
    "rules": chain(3000),
    "terminals": chain(4000, "T", ' "a"'),
}
LONG = {
    "items": lark("start: " + '"a"? ' * 20_000),
    "alternatives": lark('start: "a"' + ' | "a"' * 30_000),
}
LARGE = {
    "pattern": regex("((a{1000}){1000}){700}"),
    "terminal": lark('start: A\nA: (("a"{1000}){1000}){5}'),
}


@pytest.fixture
def reading() -> Iterator[GrammarReading]:
    made = GrammarReading()
    try:
        yield made
    finally:
        made.close()


def refusal(reading: GrammarReading, grammar: str) -> str:
    with pytest.raises(InvalidGrammarError) as refused:
        reading.require_readable(grammar)
    return str(refused.value)


@pytest.mark.parametrize("grammar", DEEP.values(), ids=DEEP)
def test_what_overflows_a_stack_is_refused_and_the_next_is_read(reading, grammar):
    assert "nested too deeply" in refusal(reading, grammar)
    reading.require_readable(regex("a"))


@pytest.mark.parametrize("grammar", LONG.values(), ids=LONG)
def test_what_takes_long_is_refused_in_bounded_time(reading, grammar):
    reading.require_readable(regex("a"))
    begun = time.thread_time(), children_time()
    assert "takes too much" in refusal(reading, grammar)
    assert time.thread_time() - begun[0] + children_time() - begun[1] < LIMIT_S


def test_a_grammar_is_given_so_much_processor_time_and_no_more():
    hasty = GrammarReading(short_cpu_s=0.02, long_cpu_s=0.04)
    grammar = lark('start: "a" "b"' + ' | "a" "b"' * 9000)
    assert "too much time" in refusal(hasty, grammar)
    hasty.require_readable(regex("a"))
    hasty.close()


@pytest.mark.parametrize("grammar", LARGE.values(), ids=LARGE)
def test_what_takes_much_memory_is_refused_and_leaves_none_behind(reading, grammar):
    reading.require_readable(regex("a"))
    assert "too much memory" in refusal(reading, grammar)
    taken = [psutil.Process(pid).memory_info().rss for pid in reading.pids]
    for n in range(10):
        assert "too much memory" in refusal(
            reading, lark(f'start: A\nA: (("a"{{1000}}){{1000}}){{9{n}}}')
        )
    for pid, before in zip(reading.pids, taken, strict=False):
        assert psutil.Process(pid).memory_info().rss < before + 4 * 2**20


@pytest.mark.parametrize(
    "grammar",
    [
        chain(500),
        chain(500, "T", ' "a"'),
        schema({"enum": [f"w{n}" for n in range(4900)]}),
        schema({"type": "string", "minLength": 3, "maxLength": 100_000}),
        schema({"$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"}),
        lark('start: <[151644]> "a" <[151600-151644]>'),
        lark('start: "a" <|im_end|>'),
        lark('start: "a" <|im_end|> <[7]>'),
        lark('start: /<[0-9]>/ "<[5>"'),
        lark('start: "a" | "a" "b" ""'),
        regex("x?"),
        regex(""),
    ],
)
def test_what_can_be_followed_is_taken(reading, grammar):
    reading.require_readable(grammar)


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (schema({"$ref": "#"}), "allows no text at all"),
        (lark("start: a\na: a"), "allows no text at all"),
        (regex(r"[^\s\S]"), "allows no text at all"),
        (regex("(a"), "cannot be read: unclosed group"),
        (lark("start: " + " | ".join(f'"w{n}"' for n in range(2500))), "too many ways to go on"),
        (lark("start: a{100000}\na: A\nA: /x/"), "too many ways to go on"),
        (lark("start: foo"), 'unknown name: "foo"'),
    ],
)
def test_what_cannot_be_followed_is_refused_in_plain_words(reading, grammar, words):
    assert words in refusal(reading, grammar)


def test_what_was_read_or_refused_is_known_without_a_process(reading):
    good, bad = regex("a+"), DEEP["rules"]
    reading.require_readable(good)
    told = refusal(reading, bad)
    reading.close()
    reading.require_readable(good)
    assert refusal(reading, bad) == told
    assert reading.pids == []


def test_what_is_known_is_bounded():
    reading = GrammarReading(max_known=2)
    for pattern in ("a", "b", "a", "c"):
        reading.require_readable(regex(pattern))
    reading.close()
    reading.require_readable(regex("a"))
    assert reading.pids == []
    reading.require_readable(regex("b"))
    assert reading.pids != []
    reading.close()


@pytest.mark.parametrize("grammar", [regex("(a"), LARGE["pattern"], LONG["items"]])
def test_what_was_refused_is_refused_though_it_is_forgotten_at_once(grammar):
    forgetful = GrammarReading(max_known=0)
    for _ in range(2):
        assert refusal(forgetful, grammar)
    forgetful.close()


def test_processes_start_with_the_first_grammar_and_end_when_closed():
    reading = GrammarReading()
    assert reading.pids == []
    reading.require_readable(regex("a"))
    refusal(reading, LONG["items"])
    pids = reading.pids
    assert len(pids) == 2
    assert all(map(is_running, pids))
    reading.close()
    assert not any(map(is_running, pids))


def test_a_process_that_somebody_ends_is_started_again_for_the_same_grammar(reading):
    reading.require_readable(regex("a"))
    (pid,) = reading.pids
    os.kill(pid, signal.SIGKILL)
    reading.require_readable(regex("b"))
    assert reading.pids != [pid]


def test_one_that_is_ended_in_the_middle_of_a_grammar_is_started_again(reading):
    refusal(reading, LONG["items"])  # both run
    _, long = reading.pids
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(refusal, reading, LONG["alternatives"])
        while not (forks := psutil.Process(long).children()):
            assert not asked.done()
        forks[0].kill()
        assert "takes too much" in asked.result()
        asked = thread.submit(refusal, reading, LONG["items"] + " ")
        while not psutil.Process(long).children():
            assert not asked.done()
        os.kill(long, signal.SIGKILL)
        assert "takes too much" in asked.result()
    assert reading.pids[1] != long


def test_where_no_process_may_read_the_caller_is_asked_to_come_back(reading, monkeypatch):
    monkeypatch.setattr(module, "WALL_S", 0.0)
    with pytest.raises(QueueFullError, match="was ended"):
        reading.require_readable(regex("a"))
    monkeypatch.undo()
    reading.require_readable(regex("a"))


def test_where_a_reading_does_not_begin_the_caller_comes_back_and_it_is_read(reading, monkeypatch):
    monkeypatch.setattr(module.LineProcess, "ask", lambda *_: {"ended": 0})
    with pytest.raises(QueueFullError):
        reading.require_readable(regex("a"))
    monkeypatch.undo()
    reading.require_readable(regex("a"))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EAGAIN, errno.ENOMEM])
def test_where_no_process_can_be_had_the_caller_is_asked_to_come_back(reading, monkeypatch, number):
    def popen(*_args: object, **_more: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(QueueFullError, match="no process can be had") as refused:
        reading.require_readable(regex("a"))
    assert refused.value.retry_after_s > 0
    monkeypatch.undo()
    reading.require_readable(regex("a"))


def test_others_are_read_beside_those_that_take_long_of_which_few_may_wait(reading, monkeypatch):
    may_go_on = threading.Event()
    original = module.ReadingProcess.read

    def read(self, grammar):
        if "bomb" not in grammar:
            return original(self, grammar)
        if self is reading._long:
            may_go_on.wait(20)
        return "takes long", self is not reading._long

    monkeypatch.setattr(module.ReadingProcess, "read", read)
    num_bombs = MAX_WAITING_LONG + 3
    with ThreadPoolExecutor(num_bombs) as threads:
        sent = [threads.submit(refusal, reading, regex(f"bomb{n}")) for n in range(num_bombs)]
        try:
            turned_away = [
                each.exception()
                for each in islice(as_completed(sent), num_bombs - MAX_WAITING_LONG - 1)
            ]
            for number in range(3):
                reading.require_readable(regex(f"b{number}"))
            assert sum(each.done() for each in sent) == len(turned_away) == 2
        finally:
            may_go_on.set()
    assert all(isinstance(error, QueueFullError) for error in turned_away)
    assert all(error.retry_after_s > 0 for error in turned_away)
    answered = [each.result() for each in sent if each.exception() is None]
    assert answered == ["takes long"] * (MAX_WAITING_LONG + 1)
    with pytest.raises(InvalidGrammarError):  # who comes back finds room again
        reading.require_readable(regex("bomb, once more"))


def test_many_who_ask_for_the_same_have_it_read_once(reading, monkeypatch):
    asked: list[str] = []
    original = module.ReadingProcess.read
    monkeypatch.setattr(
        module.ReadingProcess,
        "read",
        lambda self, grammar: asked.append(grammar) or original(self, grammar),
    )
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: reading.require_readable(regex("same")), range(8)))
        told = list(threads.map(lambda _: refusal(reading, LONG["items"]), range(4)))
    assert asked.count(regex("same")) == 1
    assert len(set(told)) == 1
    assert asked.count(LONG["items"]) <= 5  # at first each for a moment, in the long run once


def children_time() -> float:
    """Of those that have ended."""
    times = os.times()
    return times.children_user + times.children_system
