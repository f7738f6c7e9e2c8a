"""Sequences of the background beside others: in few steps, and out of the way at once."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.core import Engine
from engine.outputs import TokenOutput
from engine.sampling_params import SamplingParams
from engine.scheduling.background import MAX_PREFILL_TOKENS
from tests.engine.fake_runner import FakeRunner, config, request

if TYPE_CHECKING:
    from typing import Any

    from engine.request import SequenceRequest
    from engine.scheduling.batch import ScheduledBatch

GREEDY = SamplingParams(max_tokens=40, temperature=0)


class Bench:
    """An engine over a fake runner; who got how many tokens, and what each step held."""

    def __init__(self, **sizes: Any) -> None:
        limits = config(**{"num_blocks": 64, **sizes})
        self.runner = FakeRunner(limits)
        self.engine = Engine.with_runner(self.runner, limits)
        self.tokens: dict[int, list[int]] = {}

    def add(self, *requests: SequenceRequest) -> None:
        for each in requests:
            self.engine.add(each)

    def step(self, times: int = 1) -> list[ScheduledBatch]:
        """Step; return the batches that were launched meanwhile."""
        launched = len(self.runner.batches)
        for _ in range(times):
            for output in self.engine.step():
                if isinstance(output, TokenOutput):
                    self.tokens.setdefault(output.sequence_id, []).append(output.token_id)
            self.engine.scheduler.check()
        return self.runner.batches[launched:]

    def drain(self) -> None:
        while self.engine.has_work:
            self.step()

    def answers(self, each: SequenceRequest) -> bool:
        return self.tokens.get(each.sequence_id, []) == self.runner.model.answer(each)


def background(sequence_id: int, prompt: int | list[int], **others: Any) -> SequenceRequest:
    return request(sequence_id, prompt, others.pop("params", GREEDY), is_background=True, **others)


def foreground(sequence_id: int, prompt: int | list[int], **others: Any) -> SequenceRequest:
    return request(sequence_id, prompt, others.pop("params", GREEDY), **others)


def test_alone_it_takes_part_in_every_step():
    bench = Bench(background_every_steps=8)
    bench.add(background(1, 4), background(2, 4))
    assert all(set(batch.sequence_ids) == {1, 2} for batch in bench.step(10))


def test_beside_others_it_takes_part_in_one_of_so_many_steps():
    bench = Bench(background_every_steps=5)
    bench.add(background(1, 4), foreground(2, 4))
    with_it = [1 in batch.sequence_ids for batch in bench.step(31)[1:]]
    assert sum(with_it) == 6
    assert not any(first and second for first, second in itertools.pairwise(with_it))


def test_others_are_in_every_step_meanwhile():
    bench = Bench(background_every_steps=3)
    bench.add(foreground(1, 4))
    bench.step(2)
    bench.add(background(2, 60, params=replace(GREEDY, max_tokens=4)))
    assert all(1 in batch.sequence_ids for batch in bench.step(30))


def test_it_runs_at_once_where_others_have_nothing_to_run():
    """Of the last token that has been launched nobody knows yet that it is the last."""
    bench = Bench(background_every_steps=1000)
    bench.add(foreground(1, 4, params=replace(GREEDY, max_tokens=2)), background(2, 4))
    bench.drain()
    assert len(bench.tokens[2]) == GREEDY.max_tokens


def test_long_prompts_of_it_are_read_in_small_parts_beside_others():
    bench = Bench(
        background_every_steps=2, max_num_batched_tokens=400, max_model_len=700, num_blocks=400
    )
    bench.add(foreground(1, 4, params=replace(GREEDY, max_tokens=60)))
    bench.step(2)
    bench.add(background(2, 600))
    read = [
        len(chunk.token_ids)
        for batch in bench.step(30)
        for chunk in batch.chunks
        if chunk.sequence_id == 2
    ]
    assert sum(read) == 600
    assert max(read) <= MAX_PREFILL_TOKENS


def test_long_prompts_of_it_are_read_at_full_speed_alone():
    bench = Bench(max_num_batched_tokens=400, max_model_len=700, num_blocks=400)
    bench.add(background(2, 600))
    (first, second) = bench.step(2)
    assert (first.num_tokens, second.num_tokens) == (400, 200)


def test_whoever_comes_gets_its_slot_in_the_next_step():
    bench = Bench(max_num_seqs=3, background_every_steps=10)
    theirs = [background(i, 4) for i in range(1, 6)]
    bench.add(*theirs)
    bench.step(5)
    own = [foreground(i, 4) for i in range(11, 14)]
    bench.add(*own)
    (batch,) = bench.step()
    assert set(batch.sequence_ids) == {11, 12, 13}
    bench.drain()
    assert all(bench.answers(each) for each in theirs + own)


def test_whoever_comes_gets_its_blocks_one_step_later_at_the_latest():
    bench = Bench(num_blocks=16, max_num_seqs=4)  # 4 blocks of 4 tokens each
    theirs = [background(i, 12, params=replace(GREEDY, max_tokens=4)) for i in range(1, 5)]
    bench.add(*theirs)
    bench.step(2)
    own = foreground(11, 30, params=replace(GREEDY, max_tokens=8))
    bench.add(own)
    batches = bench.step(2)
    assert 11 in batches[-1].sequence_ids
    bench.drain()
    assert all(bench.answers(each) for each in [*theirs, own])


def test_it_gives_its_blocks_back_before_anybody_else_does():
    bench = Bench(num_blocks=16, max_num_seqs=4, background_every_steps=2)
    theirs = [background(i, 8, params=replace(GREEDY, max_tokens=20)) for i in (1, 2)]
    own = [foreground(i, 8, params=replace(GREEDY, max_tokens=24)) for i in (11, 12)]
    bench.add(*theirs, *own)
    bench.drain()
    statistics = bench.engine.statistics()
    assert statistics.num_preemptions > 0
    restarted = [start.sequence_id for batch in bench.runner.batches for start in batch.starts]
    assert restarted.count(11) == restarted.count(12) == 1
    assert all(bench.answers(each) for each in theirs + own)


def test_what_it_was_served_does_not_count_against_its_callers_own_requests():
    bench = Bench(max_num_seqs=1, background_every_steps=2)
    bench.add(background(1, 4, caller="a", params=replace(GREEDY, max_tokens=30)))
    bench.step(25)
    busy = [foreground(i, 4, caller=caller) for i, caller in ((11, "b"), (12, "a"))]
    bench.add(*busy)
    bench.step()
    order = []
    while bench.engine.has_work:
        for batch in bench.step():
            order += [start.sequence_id for start in batch.starts]
    assert order.index(12) < order.index(1)


def test_it_does_not_count_as_what_waits():
    bench = Bench(max_num_seqs=1, max_queued_seqs=2)
    bench.add(*(background(i, 4) for i in range(1, 20)))
    bench.step()
    statistics = bench.engine.statistics()
    assert (statistics.num_running, statistics.num_waiting, statistics.num_queued_seqs) == (0, 0, 0)
    assert statistics.num_free_slots == 1  # whoever comes finds it
    assert statistics.num_background_running == 1
    assert statistics.num_background_waiting == 18
    bench.add(foreground(100, 4))
    bench.drain()


def test_its_constraints_do_not_slow_steps_that_it_has_no_part_in():
    """A step need not wait for the one before where who must be waited for is left out."""
    bench = Bench(background_every_steps=10)
    bench.add(
        foreground(1, 4),
        background(2, 4, params=replace(GREEDY, bad_words=((1, 2),))),
    )
    bench.step(3)
    waits = []
    for _ in range(20):
        waits.append(bench.engine.scheduler.must_collect_first)
        bench.step()
    assert 0 < sum(waits) <= 4


def test_prompts_of_it_are_evicted_before_those_of_others():
    bench = Bench(num_blocks=16, max_num_seqs=1)
    short = replace(GREEDY, max_tokens=2)
    shared = list(range(16))
    bench.add(foreground(1, [*shared, 20], params=short))
    bench.drain()
    for number in range(2, 12):
        bench.add(background(number, 20, params=short))
        bench.drain()
    hits = bench.engine.statistics().prefix_cache_hits
    bench.add(foreground(50, [*shared, 21], params=short))
    bench.drain()
    assert bench.engine.statistics().prefix_cache_hits - hits == 16


def test_lines_of_one_batch_find_each_others_beginning():
    bench = Bench()
    shared = list(range(16))
    for number in (1, 2):
        bench.add(background(number, [*shared, 20 + number], params=replace(GREEDY, max_tokens=2)))
        bench.drain()
    assert bench.engine.statistics().prefix_cache_hits == 16
