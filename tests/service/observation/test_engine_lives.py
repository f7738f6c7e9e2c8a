"""Counts go on over an engine's restarts, a model's unloading and its swap."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from engine.statistics import EngineStatistics, Latencies, TokenTimes
from service.observation.engine_lives import EngineLives

NOTHING = EngineStatistics(
    num_running=0,
    num_waiting=0,
    num_queued_seqs=0,
    num_queued_tokens=0,
    num_free_slots=4,
    num_blocks=10,
    num_free_blocks=10,
    prefill_tokens_per_s=0.0,
    num_threads=2,
    num_prompt_tokens=0,
    num_generated_tokens=0,
    num_preemptions=0,
    num_pauses=0,
    prefix_cache_queries=0,
    prefix_cache_hits=0,
    num_drafted_tokens=0,
    num_accepted_tokens=0,
)


@dataclass(eq=False)
class Engine:
    statistics: EngineStatistics | None = NOTHING
    is_alive: bool = True
    latencies: Latencies = field(default_factory=Latencies)

    def generate(self, num_tokens: int) -> None:
        assert self.statistics is not None
        total = self.statistics.num_generated_tokens + num_tokens
        self.statistics = replace(self.statistics, num_generated_tokens=total)
        self.latencies.note_start(TokenTimes(0.0), 1.0)


def generated(lives: EngineLives, *current: Engine) -> tuple[int, int]:
    totals = lives.totals("m", current)
    return totals.num_generated_tokens, sum(totals.latencies.queue.counts)


def test_an_engine_that_was_restarted_takes_nothing_back():
    lives, first, second = EngineLives(), Engine(), Engine()
    first.generate(5)
    assert generated(lives, first) == (5, 1)
    first.generate(2)
    first.is_alive = False
    assert generated(lives) == (7, 2)
    assert generated(lives, second) == (7, 2)
    second.generate(3)
    assert generated(lives, second) == (10, 3)
    assert generated(lives, second) == (10, 3)


def test_an_engine_that_no_scrape_ever_met_counts_if_a_request_did():
    lives, first, second = EngineLives(), Engine(), Engine()
    lives.see("m", first)
    first.generate(4)
    first.is_alive = False
    lives.see("m", second)
    lives.see("m", second)
    assert generated(lives, second) == (4, 1)


def test_a_dead_engine_counts_on_while_its_last_messages_may_come():
    lives, engine = EngineLives(), Engine()
    lives.see("m", engine)
    engine.is_alive = False
    assert generated(lives, engine) == (0, 0)
    engine.generate(6)
    assert generated(lives, engine) == (6, 1)
    assert generated(lives) == (6, 1)


def test_during_a_swap_both_engines_count():
    lives, old, new = EngineLives(), Engine(), Engine()
    old.generate(5)
    new.generate(1)
    assert generated(lives, new, old) == (6, 2)
    old.generate(1)
    old.is_alive = False
    assert generated(lives, new) == (7, 3)


def test_an_engine_that_dies_during_a_swap_and_is_met_once_more_counts_once():
    lives, old, new = EngineLives(), Engine(), Engine()
    old.generate(5)
    assert generated(lives, old) == (5, 1)
    old.is_alive = False
    lives.see("m", new)
    assert generated(lives, new, old) == (5, 1)
    assert generated(lives, new) == (5, 1)
    assert generated(lives, new) == (5, 1)


def test_models_are_counted_apart_and_none_is_forgotten():
    lives, engine = EngineLives(), Engine(statistics=None)
    lives.see("m", engine)
    lives.see("other", Engine())
    engine.is_alive = False
    assert generated(lives) == (0, 0)
    assert lives.names == ["m", "other"]
