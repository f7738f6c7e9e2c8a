from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from engine.constraint import ALLOWS_NOTHING
from engine.core import Engine
from engine.errors import (
    BlockAccountingError,
    DeadlineExceededError,
    InvalidConstraintError,
    NoCandidatesError,
    NonFiniteLogitsError,
    OutOfMemoryError,
    QueueFullError,
)
from engine.outputs import (
    FinishReason,
    PromptLogprobs,
    SequenceFailure,
    SequenceStarted,
    TokenOutput,
)
from engine.sampling_params import SamplingParams
from engine.scheduling.batch import SampledTokens, ScheduledBatch, extras_of
from engine.scheduling.mask_reader import SLOW_MASK_S
from engine.scheduling.prompt_planner import MAX_PROMPT_LOGPROB_ROWS
from tests.engine.fake_runner import FakeRunner, Model, config, request

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from engine.outputs import StepOutput
    from engine.request import SequenceRequest

GREEDY = SamplingParams(max_tokens=8, temperature=0)


class Bench:
    """An engine over a fake runner, and what came out of it."""

    def __init__(self, model: Model | None = None, **sizes: Any) -> None:
        self.now = 0.0
        limits = config(**sizes)
        self.fails: set[int] = set()
        self.errors: list[Exception] = []
        self.runner = FakeRunner(
            limits,
            model=model,
            fails=lambda sequence_id, _: sequence_id in self.fails,
            breaks=lambda _: self.errors.pop(0) if self.errors else None,
        )
        self.engine = Engine.with_runner(self.runner, limits, clock=lambda: self.now)
        self.outputs: list[StepOutput] = []

    def add(self, *requests: SequenceRequest) -> None:
        for each in requests:
            self.engine.add(each)

    def step(self, times: int = 1) -> ScheduledBatch | None:
        """Step; return the batch that was launched last."""
        launched = len(self.runner.batches)
        for _ in range(times):
            self.outputs += self.engine.step()
            self.engine.scheduler.check()
        return self.runner.batches[-1] if len(self.runner.batches) > launched else None

    def drain(self) -> None:
        while self.engine.has_work:
            self.step()
        blocks = self.engine.scheduler.block_manager
        assert blocks.num_free_blocks == blocks.num_blocks

    def tokens(self, sequence_id: int) -> list[int]:
        return [
            output.token_id
            for output in self.outputs
            if isinstance(output, TokenOutput) and output.sequence_id == sequence_id
        ]

    def failures(self) -> dict[int, Exception]:
        return {o.sequence_id: o.error for o in self.outputs if isinstance(o, SequenceFailure)}

    def cached(self) -> list[tuple[int, int]]:
        """Which sequences were told how much of their prompt was cached, in that order."""
        return [
            (o.sequence_id, o.num_cached_tokens)
            for o in self.outputs
            if isinstance(o, SequenceStarted) and o.num_cached_tokens
        ]

    def started(self) -> dict[int, SequenceStarted]:
        """What each sequence was told as it began; it is told once."""
        told = [output for output in self.outputs if isinstance(output, SequenceStarted)]
        by_id = {output.sequence_id: output for output in told}
        assert len(by_id) == len(told)
        return by_id

    def answers(self, each: SequenceRequest) -> bool:
        return self.tokens(each.sequence_id) == self.runner.model.answer(each)


def chunks(batch: ScheduledBatch | None) -> list[tuple[int, int, int]]:
    assert batch is not None
    return [(chunk.sequence_id, chunk.start, chunk.stop) for chunk in batch.chunks]


def test_policy_is_free_of_tensors():
    """Importing the scheduler in a fresh interpreter must not load torch or transformers."""
    program = (
        "import sys, engine.scheduling.scheduler\n"
        "found = {'torch', 'transformers', 'numpy'} & sys.modules.keys()\n"
        "sys.exit(', '.join(sorted(found)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_nothing_is_scheduled_without_work():
    bench = Bench()
    assert bench.step() is None
    assert not bench.engine.has_work


def test_a_callers_prompts_come_first_come_first_served():
    bench = Bench(max_num_seqs=2)
    bench.add(request(5, 4), request(3, 4), request(4, 4))
    assert chunks(bench.step()) == [(5, 0, 4), (3, 0, 4)]
    assert bench.engine.statistics().num_waiting == 1


def test_a_short_prompt_joins_those_who_decode():
    bench = Bench()
    bench.add(request(1, 4))
    bench.step()
    bench.add(request(2, 4))
    batch = bench.step()
    assert batch is not None
    assert (batch.decodes.sequence_ids, chunks(batch)) == ((1,), [(2, 0, 4)])


def test_a_sequence_decodes_before_its_last_token_is_known():
    """Step N+1 is scheduled while N is in flight: its position is one further."""
    bench = Bench()
    bench.add(request(1, 4))
    bench.step()
    batch = bench.step()
    assert batch is not None
    assert batch.decodes.positions == (4,)
    assert len(bench.runner.in_flight) == 1


def test_a_long_prompt_is_read_in_chunks_of_the_budget():
    bench = Bench(max_num_batched_tokens=16)
    bench.add(request(1, 40))
    assert [chunks(bench.step()) for _ in range(3)] == [
        [(1, 0, 16)],
        [(1, 16, 32)],
        [(1, 32, 40)],
    ]


def test_decoding_goes_first_and_prompts_get_what_is_left():
    bench = Bench(max_num_batched_tokens=10)
    bench.add(request(1, 4), request(2, 4))
    bench.step()
    bench.add(request(3, 9))
    batch = bench.step()
    assert batch is not None
    assert len(batch.decodes) == 2
    assert chunks(batch) == [(3, 0, 8)]


def test_long_prompts_run_by_themselves_every_second_step():
    """So they are read at full speed, and nobody waits for longer than one such step."""
    bench = Bench(max_num_batched_tokens=20, max_model_len=64, num_blocks=40)
    bench.add(request(1, 4, replace(GREEDY, max_tokens=30)))
    bench.step(2)
    bench.add(request(2, 60, replace(GREEDY, max_tokens=4)))
    steps = [bench.step() for _ in range(5)]
    kinds = [(len(b.decodes), sum(len(c.token_ids) for c in b.chunks)) for b in steps if b]
    assert kinds == [(0, 20), (1, 16), (0, 20), (1, 4), (2, 0)]  # cut between blocks of 4


def test_a_long_queue_of_short_prompts_does_not_stop_answers():
    """A slot that becomes free takes one of them; it joins the step that decodes for the rest."""
    bench = Bench(max_num_seqs=3, max_num_batched_tokens=20, max_model_len=64, num_blocks=40)
    bench.add(request(1, 4, replace(GREEDY, max_tokens=4)))
    bench.add(*(request(i, 4, replace(GREEDY, max_tokens=30)) for i in (2, 3)))
    bench.step(2)
    bench.add(*(request(i, 4, replace(GREEDY, max_tokens=30)) for i in range(4, 20)))
    steps = [bench.step() for _ in range(8)]
    assert bench.tokens(4)
    assert all(len(batch.decodes) >= 2 for batch in steps if batch)


def test_a_sequence_is_not_scheduled_beyond_its_last_token():
    bench = Bench()
    bench.add(request(1, 4, replace(GREEDY, max_tokens=2)))
    bench.step(2)
    assert bench.step() is None
    assert len(bench.tokens(1)) == 2


def test_an_end_token_ends_the_sequence_and_drops_the_token_after_it():
    bench = Bench()
    plain = request(1, 4)
    stop = bench.runner.model.answer(plain)[2]
    bench.add(request(1, 4, replace(GREEDY, stop_token_ids=frozenset({stop}))))
    bench.drain()
    last = bench.outputs[-1]
    assert isinstance(last, TokenOutput)
    assert (last.token_id, last.finish_reason) == (stop, FinishReason.STOP)


def test_the_models_own_end_is_ignored_where_asked_for():
    bench = Bench()
    end = frozenset(range(50))
    bench.add(request(1, 4, replace(GREEDY, eos_token_ids=end, ignore_eos=True)))
    bench.add(request(2, 4, replace(GREEDY, eos_token_ids=end)))
    bench.drain()
    assert (len(bench.tokens(1)), len(bench.tokens(2))) == (8, 1)


def test_a_repeated_prompt_is_read_from_the_cache_but_for_its_last_token():
    bench = Bench()
    prompt = list(range(16))
    bench.add(request(1, prompt))
    bench.drain()
    bench.add(request(2, prompt))
    assert chunks(bench.step()) == [(2, 12, 16)]
    bench.drain()
    assert bench.answers(request(2, prompt))
    assert bench.engine.statistics().prefix_cache_hits == 12


def test_of_a_turn_the_next_one_finds_the_prompt_and_not_the_answer():
    """An answer's tokens were computed one by one, which gives other bits than a prompt's."""
    bench = Bench()
    first = request(1, 10)
    bench.add(first)
    bench.drain()
    second = request(2, [*first.prompt_token_ids, *bench.tokens(1), 1, 2])
    bench.add(second)
    assert chunks(bench.step()) == [(2, 8, 20)]  # of 10 tokens 8 are whole blocks
    bench.drain()
    assert bench.answers(second)


def test_choices_of_one_prompt_share_its_blocks_in_the_very_step_that_reads_it():
    bench = Bench(num_blocks=16)
    prompt = list(range(18))
    bench.add(*(request(i, prompt, group=1) for i in range(3)))
    assert chunks(bench.step()) == [(0, 0, 18), (1, 16, 18), (2, 16, 18)]
    assert bench.engine.statistics().num_free_blocks == 16 - 4 - 3
    bench.drain()
    assert all(bench.answers(request(i, prompt)) for i in range(3))


def test_without_a_prefix_cache_only_choices_of_one_request_share():
    bench = Bench(has_prefix_cache=False)
    prompt = list(range(10))
    bench.add(request(1, prompt, group=1), request(2, prompt, group=1), request(3, prompt))
    assert chunks(bench.step()) == [(1, 0, 10), (2, 8, 10), (3, 0, 10)]


def test_prefixes_are_not_shared_across_salts():
    bench = Bench()
    prompt = list(range(10))
    bench.add(request(1, prompt, cache_salt="a"))
    bench.drain()
    bench.add(request(2, prompt, cache_salt="b"))
    assert chunks(bench.step()) == [(2, 0, 10)]


def test_when_blocks_run_out_the_youngest_gives_way_and_goes_on_where_it_stopped():
    bench = Bench(num_blocks=16, max_model_len=64)
    requests = [request(i, 4, replace(GREEDY, max_tokens=40)) for i in range(3)]
    bench.add(*requests)
    bench.drain()
    assert bench.engine.statistics().num_preemptions > 0
    assert all(map(bench.answers, requests))
    ends = [o.sequence_id for o in bench.outputs if isinstance(o, TokenOutput) and o.finish_reason]
    assert ends == [0, 1, 2]


def test_who_gives_way_may_have_held_the_prefix_that_its_blocks_are_wanted_for():
    """Blocks of the prefix count as free from then on: more of them have to be given back."""
    bench = Bench(max_num_seqs=1, num_blocks=9, max_model_len=36)
    prompt = list(range(32))
    asked = [
        request(1, prompt[:17], replace(GREEDY, max_tokens=8), priority=1),
        request(2, 4),
        request(3, prompt, replace(GREEDY, max_tokens=4), priority=-1),
    ]
    for each in asked:
        bench.add(each)
        bench.step(2)
    assert bench.engine.statistics().num_pauses == 2
    bench.drain()
    assert all(map(bench.answers, asked))


def test_a_waiting_sequence_is_aborted_at_once():
    bench = Bench(max_num_seqs=1)
    bench.add(request(1, 4), request(2, 4))
    bench.step()
    bench.engine.abort(2)
    bench.drain()
    assert bench.tokens(2) == []
    assert bench.answers(request(1, 4))


def test_a_running_sequence_is_aborted_without_further_output():
    bench = Bench()
    bench.add(request(1, 4), request(2, 4))
    bench.step(3)
    bench.engine.abort(1)
    got = len(bench.tokens(1))
    bench.drain()
    assert len(bench.tokens(1)) == got
    assert bench.answers(request(2, 4))


def test_a_paused_or_preempted_sequence_can_be_aborted():
    bench = Bench(max_num_seqs=1)
    bench.add(request(1, 4, replace(GREEDY, max_tokens=50)))
    bench.step(2)
    bench.add(request(2, 4, priority=-1))
    bench.step()
    assert bench.engine.statistics().num_pauses == 1
    bench.engine.abort(1)
    bench.drain()
    assert bench.answers(request(2, 4))


def test_aborting_what_is_not_there_changes_nothing():
    bench = Bench()
    bench.engine.abort(99)
    bench.add(request(1, 4))
    bench.drain()
    bench.engine.abort(1)
    assert bench.answers(request(1, 4))


def test_a_sequence_with_bad_logits_fails_alone_and_leaves_nothing_of_them_behind():
    bench = Bench(num_blocks=17)
    prompt = list(range(12))
    bench.fails = {1}
    bench.add(request(1, prompt), request(2, 4))
    bench.drain()
    assert isinstance(bench.failures()[1], NonFiniteLogitsError)
    assert bench.answers(request(2, 4))
    later = request(3, prompt)  # would find the failed one's blocks, had they kept their names
    bench.add(later)
    bench.drain()
    assert bench.answers(later)


def test_a_sequence_whose_time_is_over_fails_with_what_to_do():
    bench = Bench(max_num_seqs=1)
    bench.add(
        request(1, 4, replace(GREEDY, max_tokens=40), timeout_s=5.0),
        request(2, 4, timeout_s=5.0),
        request(3, 4, timeout_s=50.0),
    )
    bench.step(4)
    bench.now = 5.0
    bench.step()
    assert set(bench.failures()) == {1, 2}
    assert isinstance(bench.failures()[1], DeadlineExceededError)
    assert "3 generated tokens" in str(bench.failures()[1])
    bench.drain()
    assert bench.answers(request(3, 4))


def test_the_queue_is_bounded_but_not_by_those_who_run():
    bench = Bench(max_num_seqs=2, max_queued_seqs=2)
    bench.add(request(1, 4), request(2, 4))
    with pytest.raises(QueueFullError, match="2 sequences wait"):
        bench.add(request(3, 4))
    bench.step()
    bench.add(request(3, 4), request(4, 4))
    bench.drain()
    assert all(bench.answers(request(i, 4)) for i in (1, 2, 3, 4))


def test_drafts_change_nothing_but_the_number_of_steps():
    asked = [request(i, 10, replace(GREEDY, max_tokens=40)) for i in range(3)]
    drafting, plain = (
        Bench(Model(repeats_itself=True), num_blocks=60, num_speculative_tokens=k) for k in (6, 0)
    )
    for bench in (drafting, plain):
        bench.add(*asked)
        bench.drain()
        assert all(map(bench.answers, asked))
    assert drafting.engine.statistics().num_accepted_tokens > 20
    assert len(drafting.runner.batches) < 0.7 * len(plain.runner.batches)


def test_drafting_stops_where_it_is_always_wrong():
    bench = Bench(num_speculative_tokens=4, max_model_len=400, num_blocks=100)
    prompt = [1, 2, 3, 4, 5, 6] * 40  # the fake model never goes on like that
    bench.add(request(1, prompt, replace(GREEDY, max_tokens=150)))
    bench.drain()
    assert bench.engine.statistics().num_accepted_tokens < 5
    assert bench.engine.statistics().num_drafted_tokens < 60


def test_prompt_logprobs_come_in_order_and_once_whatever_happens():
    sizes = {"max_model_len": 400, "num_blocks": 130, "max_num_batched_tokens": 300}
    bench = Bench(**sizes)
    asked = request(1, 300, replace(GREEDY, prompt_logprobs=0))
    bench.add(request(9, asked.prompt_token_ids))  # leaves all of it in the prefix cache
    bench.drain()
    bench.add(asked)
    batch = bench.step()
    assert chunks(batch) == [(1, 0, MAX_PROMPT_LOGPROB_ROWS)]
    bench.step()
    bench.errors = [OutOfMemoryError("none left")]  # all is computed again
    bench.drain()
    told = [t for o in bench.outputs if isinstance(o, PromptLogprobs) for t in o.tokens]
    assert [int(each.logprob) for each in told] == list(asked.prompt_token_ids[1:])
    assert bench.answers(asked)


def test_how_much_of_a_prompt_was_cached_is_told_once_just_before_the_first_token():
    bench = Bench(max_num_batched_tokens=8)
    prompt = list(range(40))
    bench.add(request(1, prompt[:16]))
    bench.drain()
    assert bench.cached() == []  # nothing was, and nothing is said
    bench.outputs.clear()
    bench.add(request(2, prompt))  # its other 24 tokens take three steps
    bench.drain()
    assert bench.outputs[0] == SequenceStarted(2, 16, 0.0)
    assert bench.cached() == [(2, 16)]


def test_what_was_done_before_the_counters_are_reset_is_not_counted():
    bench = Bench()
    bench.add(request(1, 20))
    bench.drain()
    bench.engine.scheduler.reset_counters()
    bench.add(request(2, 5))
    bench.drain()
    statistics = bench.engine.statistics()
    assert statistics.num_prompt_tokens == 5
    assert statistics.num_generated_tokens == len(bench.tokens(2))


def test_how_long_a_sequence_waited_is_told_once_by_the_engines_clock():
    bench = Bench(max_num_seqs=1, max_num_batched_tokens=8)
    bench.add(request(1, 20), request(2, 4))
    while bench.engine.has_work:
        bench.now += 1.0
        bench.step()
    started = bench.started()
    assert started[1].queue_s == 1.0
    last_of_first = 1.0 + 3 + GREEDY.max_tokens  # chunks of its prompt, then its tokens
    assert started[2].queue_s == pytest.approx(last_of_first, abs=1)


def test_a_sequence_is_announced_after_its_first_step_and_not_again_when_preempted():
    bench = Bench(max_num_batched_tokens=8)
    bench.add(request(1, 40))
    bench.step(2)
    assert list(bench.started()) == [1]
    assert bench.tokens(1) == []
    bench.errors.append(OutOfMemoryError("no memory"))
    bench.drain()
    assert list(bench.started()) == [1]
    assert len(bench.tokens(1)) == 8


def test_each_choice_is_told_what_it_found_of_the_one_before_it():
    bench = Bench(has_prefix_cache=False)
    bench.add(*(request(i, list(range(18)), group=1) for i in range(3)))
    bench.drain()
    assert bench.cached() == [(1, 16), (2, 16)]


def test_a_prompt_whose_every_token_is_reported_comes_from_no_cache():
    bench = Bench()
    bench.add(request(1, list(range(16))))
    bench.drain()
    before = bench.engine.statistics()
    bench.add(request(2, list(range(16)), replace(GREEDY, prompt_logprobs=0)))
    bench.drain()
    assert bench.cached() == []
    assert bench.engine.statistics().prefix_cache_queries == before.prefix_cache_queries > 0


def test_what_a_preempted_sequence_finds_of_its_own_does_not_count_as_cached():
    bench = Bench(num_blocks=16, max_model_len=64)
    bench.add(*(request(i, 9, replace(GREEDY, max_tokens=40)) for i in range(3)))
    bench.drain()
    statistics = bench.engine.statistics()
    assert statistics.num_preemptions > 0
    assert statistics.prefix_cache_hits > 0
    assert bench.cached() == []


def test_a_hit_is_told_once_though_its_first_step_ran_out_of_memory():
    bench = Bench(num_blocks=40)
    prompt = list(range(16))
    bench.add(request(1, prompt))
    bench.drain()
    bench.add(request(2, prompt))
    bench.errors = [OutOfMemoryError("none left")]
    bench.drain()
    assert bench.cached() == [(2, 12)]


def test_a_step_without_memory_is_tried_again_in_smaller_ones():
    bench = Bench(num_blocks=40)
    asked = [request(i, 10) for i in range(4)]
    bench.add(*asked)
    bench.step(2)
    bench.errors = [OutOfMemoryError("none left")]
    bench.drain()
    assert all(map(bench.answers, asked))
    assert not bench.failures()


def test_whoever_lacks_memory_twice_fails_and_the_others_go_on():
    bench = Bench(num_blocks=40)
    bench.add(request(1, 10))
    bench.errors = [OutOfMemoryError("none left")] * 2
    bench.step(4)
    bench.add(request(2, 10))
    bench.drain()
    assert isinstance(bench.failures()[1], OutOfMemoryError)
    assert bench.answers(request(2, 10))


def test_whoever_found_blocks_that_a_step_without_memory_never_wrote_is_computed_anew():
    bench = Bench(num_blocks=64, max_model_len=128)
    common = [token % 50 for token in range(60)]
    first = request(1, [*common, 1, 2])  # leaves 2 tokens of the step, which are no block
    second = request(2, [*common, *range(3, 13)])
    bench.add(first, second)
    bench.errors = [OutOfMemoryError("none left")]
    # By hand: the engine would launch another step ahead, with the second in it.
    scheduler = bench.engine.scheduler
    batch = scheduler.schedule()
    assert batch is not None
    assert chunks(batch) == [(1, 0, 62)]
    assert scheduler._residency.admit() is not None
    assert scheduler.block_manager.sharers([1]) == [2]
    with pytest.raises(OutOfMemoryError):
        bench.runner.launch(batch).result()
    assert scheduler.retract([batch]) == []
    scheduler.check()
    bench.drain()
    assert bench.answers(first)
    assert bench.answers(second)


def test_nobody_is_let_in_of_whom_nothing_fits_so_that_all_find_what_the_first_has_left():
    bench = Bench(num_blocks=64, max_num_seqs=8, max_model_len=128, max_num_batched_tokens=19)
    decoding = request(0, 4, replace(GREEDY, max_tokens=40))
    bench.add(decoding)
    bench.step(2)
    common = [token % 50 for token in range(60)]
    mates = [request(1 + i, [*common, i], replace(GREEDY, max_tokens=2)) for i in range(6)]
    bench.add(*mates)
    bench.drain()
    for batch in bench.runner.batches:
        assert {start.sequence_id for start in batch.starts} <= {*batch.sequence_ids}
    computed = sum(c.stop - c.start for b in bench.runner.batches for c in b.chunks)
    assert computed == 4 + 61 + 5
    assert all(map(bench.answers, (decoding, *mates)))


def test_callers_share_the_slots_where_a_step_leaves_less_than_a_block_over():
    bench = Bench(num_blocks=200, max_num_seqs=4, max_model_len=128, max_num_batched_tokens=32)
    prompts = {i: [(i * 13 + j * j) % 50 for j in range(29)] for i in range(8)}
    for i, prompt in prompts.items():
        bench.add(request(i, prompt, replace(GREEDY, max_tokens=40), caller="ab"[i // 4]))
    bench.step(6)
    let_in = [start.sequence_id for batch in bench.runner.batches for start in batch.starts]
    assert sorted("ab"[i // 4] for i in let_in) == ["a", "a", "b", "b"]  # and nobody was paused


def test_blocks_that_were_to_be_zeroed_in_a_step_without_memory_still_are():
    bench = Bench(num_blocks=40, max_num_batched_tokens=32)
    bench.fails = {1}
    bench.add(request(1, 9))
    bench.step(3)
    blocks = bench.engine.scheduler.block_manager
    bench.add(request(2, 3))  # needs one of them
    batch = bench.engine.scheduler.schedule()
    assert batch is not None
    assert batch.dirty_blocks
    bench.engine.scheduler.retract([batch])
    assert set(batch.dirty_blocks) <= set(blocks.take_dirty())


def test_what_an_ended_sequence_leaves_is_zeroed_where_its_last_step_failed():
    bench = Bench(num_blocks=40)
    bench.add(request(1, 9))
    bench.step(3)
    bench.fails = {1}  # seen by nobody: it is ended while that step is under way
    bench.step()
    bench.engine.abort(1)
    bench.drain()
    blocks = bench.engine.scheduler.block_manager
    assert len(blocks.take_dirty()) == 3


def test_what_a_prompt_leaves_that_ended_before_its_first_token_is_zeroed_for_whoever_is_next():
    """Whether its keys and values are finite would have shown in that token's logits."""
    bench = Bench(max_num_batched_tokens=8)
    bench.add(request(1, 40))
    bench.step()
    blocks = bench.engine.scheduler.block_manager
    held = set(blocks.block_table(1))
    bench.engine.abort(1)
    bench.drain()
    dirty = set(blocks.take_dirty())
    blocks.forget_prefixes()  # two of them had names
    named = set(blocks.take_dirty())
    assert len(named) == 2
    assert dirty | named == held


def test_nothing_is_zeroed_behind_who_got_a_token():
    bench = Bench(max_num_batched_tokens=8)
    bench.add(request(1, 40))
    bench.drain()
    blocks = bench.engine.scheduler.block_manager
    blocks.forget_prefixes()
    assert blocks.take_dirty() == ()


def test_three_lacks_of_memory_within_a_minute_end_the_engine():
    bench = Bench(num_blocks=40)
    bench.errors = [OutOfMemoryError("none left")] * 3
    bench.add(*(request(i, 4) for i in range(4)))

    def step_for_ten_seconds_each() -> None:
        for _ in range(20):
            bench.step()
            bench.now += 10

    with pytest.raises(OutOfMemoryError):
        step_for_ten_seconds_each()


class Alternating:
    """Allows even and odd tokens in turn; complete after six."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    @property
    def is_complete(self) -> bool:
        return len(self.taken) == 6

    failure = None
    was_cut = False

    def next_masks(self, draft: Sequence[int]) -> list[bytes]:
        firsts = [(len(self.taken) + n) % 2 for n in range(len(draft) + 1)]
        return [sum(1 << i for i in range(first, 50, 2)).to_bytes(8, "little") for first in firsts]

    def num_allowed(self, draft: Sequence[int]) -> int:
        parities = [token % 2 == (len(self.taken) + n) % 2 for n, token in enumerate(draft)]
        return parities.index(False) if False in parities else len(draft)

    def forced(self, most: int) -> list[int]:
        return []

    def advance(self, token_id: int) -> None:
        self.taken.append(token_id)


def test_a_constraint_sees_every_token_before_the_next_mask_is_asked_for():
    bench = Bench(num_speculative_tokens=4)
    constraint = Alternating()
    bench.engine.add(request(1, 10, replace(GREEDY, max_tokens=20)), constraint=constraint)
    bench.add(request(2, 10))
    bench.drain()
    assert constraint.taken == bench.tokens(1)
    assert len(bench.tokens(1)) == 6
    assert bench.answers(request(2, 10))
    rows = [extras_of(c) for b in bench.runner.batches for c in b.chunks if c.sequence_id == 1]
    assert [row.mask for (row,) in rows] == [
        sum(1 << i for i in range(n % 2, 50, 2)).to_bytes(8, "little") for n in range(6)
    ]


class Dictating(Alternating):
    """Leaves no choice about the next tokens, as far as they are told."""

    def __init__(self, dictated: Sequence[int]) -> None:
        super().__init__()
        self._dictated = dictated

    def forced(self, most: int) -> list[int]:
        return list(self._dictated[len(self.taken) : len(self.taken) + most])


def test_what_a_grammar_leaves_no_choice_about_is_verified_in_one_step():
    bench = Bench()
    asked = request(1, 10, replace(GREEDY, max_tokens=6))
    answer = bench.runner.model.answer(asked)
    bench.engine.add(asked, constraint=Dictating(answer[:5]))
    bench.drain()
    assert bench.tokens(1) == answer
    sizes = [len(c.token_ids) for b in bench.runner.batches for c in b.chunks]
    # The prompt; its token with 4 dictated ones behind it, all right, so the sixth is sampled too.
    assert sizes == [10, 5]
    masks = [extras_of(c) for b in bench.runner.batches for c in b.chunks][1]
    assert [extra.draft_token_ids for extra in masks] == [
        tuple(answer[1 : 1 + n]) for n in range(5)
    ]
    assert [(extra.mask or b"")[0] & 3 for extra in masks] == [2, 1, 2, 1, 2]


def test_no_more_is_dictated_than_may_be_answered():
    bench = Bench()
    asked = request(1, 10, replace(GREEDY, max_tokens=3))
    answer = bench.runner.model.answer(replace(asked, params=replace(GREEDY, max_tokens=9)))
    bench.engine.add(asked, constraint=Dictating(answer[:6]))
    bench.drain()
    assert bench.tokens(1) == answer[:3]
    assert bench.engine.statistics().num_drafted_tokens == 1


def test_guesses_are_cut_where_the_grammar_forbids_them():
    """What repeats itself is guessed, as far as even and odd tokens alternate in it."""
    guided = Bench(Model(repeats_itself=True), num_speculative_tokens=4)
    free = Bench(Model(repeats_itself=True), num_speculative_tokens=4)
    asked = request(1, [0, 1, 4, 6, 5, 2] * 2, replace(GREEDY, max_tokens=6))
    guided.engine.add(asked, constraint=Alternating())
    free.add(asked)
    for bench in (guided, free):
        bench.drain()
    assert guided.tokens(1) == free.tokens(1)
    drafts = [c.drafts for b in guided.runner.batches for c in b.chunks if c.drafts]
    assert drafts
    assert all(len(draft) < 4 for draft in drafts)


class Finite(Dictating):
    """Allows a text and nothing behind it; whether it is complete then is told, or is not."""

    def __init__(self, dictated: Sequence[int], *, is_dead_end: bool) -> None:
        super().__init__(dictated)
        self._is_dead_end = is_dead_end

    @property
    def is_complete(self) -> bool:
        return not self._is_dead_end and len(self.taken) == len(self._dictated)

    def next_masks(self, draft: Sequence[int]) -> list[bytes]:
        left = len(self._dictated) - len(self.taken)
        return [b"\xff" * 8 if n < left else ALLOWS_NOTHING for n in range(len(draft) + 1)]


@pytest.mark.parametrize("length", range(1, 15))
def test_a_form_that_is_complete_ends_the_answer_also_where_its_end_was_drafted(length):
    bench = Bench()
    asked = request(1, 10, replace(GREEDY, max_tokens=20))
    answer = bench.runner.model.answer(asked)
    bench.engine.add(asked, constraint=Finite(answer[:length], is_dead_end=False))
    bench.add(request(2, 10))
    bench.drain()
    assert not bench.failures()
    assert bench.tokens(1) == answer[:length]
    told = [o for o in bench.outputs if isinstance(o, TokenOutput) and o.sequence_id == 1]
    assert [o.finish_reason for o in told] == [None] * (length - 1) + [FinishReason.STOP]
    assert bench.answers(request(2, 10))
    statistics = bench.engine.statistics()
    assert statistics.num_accepted_tokens == statistics.num_drafted_tokens
    assert (statistics.num_drafted_tokens > 0) == (length > 1)


@pytest.mark.parametrize("length", range(15))
def test_a_dead_end_fails_its_sequence_once_what_came_before_it_was_told(length):
    bench = Bench()
    asked = request(1, 10, replace(GREEDY, max_tokens=20))
    answer = bench.runner.model.answer(asked)
    bench.engine.add(asked, constraint=Finite(answer[:length], is_dead_end=True))
    bench.add(request(2, 10))
    bench.drain()
    assert bench.tokens(1) == answer[:length]
    (failure,) = bench.failures().values()
    assert isinstance(failure, NoCandidatesError)
    assert f"after {length} generated ones" in str(failure)
    assert bench.answers(request(2, 10))


class Failing(Alternating):
    """Cannot be followed beyond three tokens, and knows why."""

    failure: str | None = None

    def next_masks(self, draft: Sequence[int]) -> list[bytes]:
        if len(self.taken) < 3:
            return super().next_masks(draft)
        self.failure = "the grammar is too complex"
        return [ALLOWS_NOTHING]


class Breaking(Alternating):
    """Has a fault of its own."""

    def next_masks(self, draft: Sequence[int]) -> list[bytes]:
        return super().next_masks(draft) if len(self.taken) < 2 else [b""[1]]


def test_a_grammar_that_cannot_be_followed_on_fails_its_sequence_alone():
    bench = Bench()
    bench.engine.add(request(1, 10), constraint=Failing())
    bench.engine.add(request(2, 10), constraint=Breaking())
    bench.add(request(3, 10))
    bench.drain()
    failures = bench.failures()
    assert isinstance(failures[1], InvalidConstraintError)
    assert str(failures[1]) == "the grammar is too complex"
    assert isinstance(failures[2], NoCandidatesError)
    assert [len(bench.tokens(i)) for i in (1, 2)] == [3, 2]
    assert bench.answers(request(3, 10))


def test_a_step_that_is_taken_back_is_planned_anew_once_its_masks_are_there():
    begun: list[int] = []
    ended: list[int] = []

    class Slow(Alternating):
        def next_masks(self, draft: Sequence[int]) -> list[bytes]:
            begun.append(len(self.taken))
            time.sleep(0.02)
            ended.append(len(self.taken))
            return super().next_masks(draft)

        def forced(self, most: int) -> list[int]:
            assert begun == ended
            return []

    bench = Bench()
    bench.engine.add(request(1, 10), constraint=Slow())
    bench.step(3)
    bench.errors.append(OutOfMemoryError("full"))
    bench.drain()
    assert len(bench.tokens(1)) == 6
    assert begun == ended
    assert len(begun) == 7  # one step was planned twice


class Laborious(Alternating):
    """Takes long over each mask, and is held up by a test."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go_on = threading.Semaphore(0)

    def next_masks(self, draft: Sequence[int]) -> list[bytes]:
        until = time.thread_time() + 2 * SLOW_MASK_S
        while time.thread_time() < until:
            pass
        if self.taken:  # the first one is not known to be slow
            assert self.may_go_on.acquire(timeout=20)
        return super().next_masks(draft)


class Tardy(Dictating):
    """Takes long to say what it demands."""

    num_asked = 0

    def forced(self, most: int) -> list[int]:
        self.num_asked += 1
        until = time.thread_time() + 2 * SLOW_MASK_S
        while time.thread_time() < until:
            pass
        return super().forced(most)


@pytest.mark.parametrize("num_speculative_tokens", [0, 4])
def test_what_takes_long_to_say_what_it_demands_is_not_asked_again(num_speculative_tokens):
    bench = Bench(num_speculative_tokens=num_speculative_tokens)
    asked = request(1, 10, replace(GREEDY, max_tokens=20))
    answer = bench.runner.model.answer(asked)
    tardy = Tardy(answer[:6])
    bench.engine.add(asked, constraint=tardy)
    bench.drain()
    assert tardy.num_asked == 1
    assert bench.tokens(1) == answer[:6]


def test_steps_go_on_without_a_sequence_whose_mask_takes_long():
    bench = Bench()
    laborious = Laborious()
    bench.engine.add(request(1, 10, replace(GREEDY, max_tokens=20)), constraint=laborious)
    bench.add(request(2, 10, replace(GREEDY, max_tokens=40)))
    bench.step(20)
    assert len(bench.tokens(1)) == 1
    assert len(bench.tokens(2)) >= 18
    laborious.may_go_on.release(5)
    bench.drain()
    assert constraint_was_followed(bench)
    assert bench.answers(request(2, 10, replace(GREEDY, max_tokens=40)))


def test_who_is_alone_waits_for_a_mask_that_takes_long():
    bench = Bench()
    laborious = Laborious()
    laborious.may_go_on.release(5)
    bench.engine.add(request(1, 10, replace(GREEDY, max_tokens=20)), constraint=laborious)
    bench.step(6)
    assert len(bench.tokens(1)) >= 5
    bench.drain()
    assert constraint_was_followed(bench)


def constraint_was_followed(bench: Bench) -> bool:
    """Whether each of six tokens of sequence 1 was picked by the mask of its place."""
    rows = [extras_of(c) for b in bench.runner.batches for c in b.chunks if c.sequence_id == 1]
    wanted = [sum(1 << i for i in range(n % 2, 50, 2)).to_bytes(8, "little") for n in range(6)]
    return [row.mask for (row,) in rows] == wanted and len(bench.tokens(1)) == 6


def test_the_last_token_of_a_bad_word_is_banned_where_the_word_would_be_completed():
    bench = Bench()
    answer = bench.runner.model.answer(request(1, 10))
    words = ((answer[0], 7), (answer[0], answer[1], 8), (9,), (answer[1], 11))
    bench.add(request(1, 10, replace(GREEDY, bad_words=words)))
    bench.drain()
    banned = [c.extras[0].banned_token_ids for b in bench.runner.batches for c in b.chunks]
    assert banned[:3] == [(9,), (7, 9), (8, 9, 11)]


def test_an_id_cannot_be_used_twice():
    bench = Bench()
    bench.add(request(1, 4))
    with pytest.raises(ValueError, match="sequence 1 was added already"):
        bench.add(request(1, 4))


def test_check_finds_blocks_without_a_sequence():
    bench = Bench()
    bench.engine.scheduler.block_manager.allocate(99, 4)
    with pytest.raises(BlockAccountingError, match=r"\[99\] hold blocks without"):
        bench.engine.scheduler.check()


def test_a_batch_is_not_changed_by_what_comes_after_it():
    bench = Bench()
    bench.add(request(1, 4))
    batch = bench.step()
    assert isinstance(batch, ScheduledBatch)
    before = repr(batch)
    bench.drain()
    assert repr(batch) == before
    assert SampledTokens({}).failed == frozenset()
