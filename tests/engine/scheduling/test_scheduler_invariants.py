"""Random schedules: whatever comes, goes, is chunked, preempted, paused, drafted or shared, every
sequence gets exactly the tokens it would have got alone, and no block is lost or shared wrongly.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest

from engine.core import Engine
from engine.errors import OutOfMemoryError
from engine.outputs import SequenceStarted, TokenOutput
from engine.request import SequenceRequest
from engine.sampling_params import SamplingParams
from engine.scheduling import mask_reader
from tests.engine.fake_runner import (
    VOCAB_SIZE,
    FakeRunner,
    Model,
    config,
    is_chunked,
    shares_a_step,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NUM_SCHEDULES = 400


class Watchful:
    """Allows everything; sees that one thread at a time asks, once all before it is told."""

    is_complete = was_cut = False
    failure = None

    def __init__(self, guess: list[int]) -> None:
        """guess: what it says that it demands."""
        self.told: list[int] = []  # what came of the sequence so far
        self._guess = guess
        self._taken: list[int] = []
        self._is_asked = threading.Lock()
        self.faults: list[str] = []

    @contextmanager
    def _asked(self) -> Iterator[None]:
        if not self._is_asked.acquire(blocking=False):
            self.faults.append("asked by two at once")
        elif self._taken != self.told:
            self.faults.append(f"knows {self._taken} where {self.told} came")
        try:
            yield
        finally:
            self._is_asked.release()

    def next_masks(self, draft: Sequence[int]) -> list[bytes]:
        with self._asked():
            time.sleep(1e-5)  # so that others would come in between
            return [b"\xff" * 8] * (1 + len(draft))

    def num_allowed(self, draft: Sequence[int]) -> int:
        with self._asked():
            return len(draft)

    def forced(self, most: int) -> list[int]:
        with self._asked():
            return self._guess[len(self._taken) :][: most if len(self._taken) % 3 else 0]

    def advance(self, token_id: int) -> None:
        if self._is_asked.locked():
            self.faults.append("told while it is asked")
        self._taken.append(token_id)


@dataclass
class Run:
    """What came of one random schedule."""

    requests: dict[int, SequenceRequest]
    engine: Engine
    runner: FakeRunner
    full_at: int
    tokens: dict[int, list[int]] = field(default_factory=dict)
    cached: dict[int, int] = field(default_factory=dict)  # as told, of the prompt
    finished: set[int] = field(default_factory=set)
    aborted: set[int] = field(default_factory=set)
    constraints: list[Watchful] = field(default_factory=list)


def random_request(
    chance: random.Random, sequence_id: int, prefixes: list[list[int]], longest: int
) -> SequenceRequest:
    prompt = list(chance.choice(prefixes))[: longest // 2]
    prompt += [chance.randrange(VOCAB_SIZE) for _ in range(chance.randint(1, longest // 2))]
    prompt = prompt[: longest - 1]
    params = SamplingParams(
        max_tokens=chance.randint(1, longest - len(prompt)),
        temperature=chance.choice([0, 1]),
        seed=chance.choice([None, 1, 2]) if chance.random() < 0.5 else 0,
        stop_token_ids=frozenset({chance.randrange(VOCAB_SIZE)}),
        bad_words=((VOCAB_SIZE - 1, 0, 1),) if chance.random() < 0.1 else (),
    )
    if params.seed is None:
        params = SamplingParams(max_tokens=params.max_tokens, temperature=0, seed=0)
    return SequenceRequest(
        sequence_id=sequence_id,
        prompt_token_ids=tuple(prompt),
        params=params,
        caller=chance.choice("abc"),
        weight=chance.choice([1.0, 1.0, 3.0]),
        priority=chance.choice([0, 0, 0, 1]),
        cache_salt=chance.choice(["", "", "salted"]),
        is_background=chance.random() < 0.3,
    )


def run_schedule(seed: int) -> Run:
    """Run one schedule; in some of them each mask is one that nobody waits for."""
    are_masks_slow = random.Random(seed).random() < 0.3
    with patch.object(mask_reader, "SLOW_MASK_S", -1.0 if are_masks_slow else 60.0):
        return _run_schedule(random.Random(seed))


def _run_schedule(chance: random.Random) -> Run:
    max_num_seqs = chance.randint(1, 6)
    longest = chance.choice([16, 40, 64])
    sizes = config(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=chance.randint(max_num_seqs, 40),
        max_model_len=longest,
        block_size=4,
        num_blocks=chance.randint(longest // 4, longest // 4 * max_num_seqs + 2),
        has_prefix_cache=chance.random() < 0.8,
        num_speculative_tokens=chance.choice([0, 0, 3, 6]),
        background_every_steps=chance.choice([1, 2, 5, 50]),
    )
    runner = FakeRunner(sizes, model=Model(repeats_itself=chance.random() < 0.5))
    full_at = chance.randrange(2, 60)  # the step that runs out of memory
    runner.breaks = lambda _: OutOfMemoryError("full") if len(runner.batches) == full_at else None
    engine = Engine.with_runner(runner, sizes)
    prefixes = [[], *([chance.randrange(VOCAB_SIZE) for _ in range(30)] for _ in range(2))]
    run = Run({}, engine, runner, full_at)
    to_come = chance.randint(1, 14)
    while to_come or engine.has_work:
        if to_come and chance.random() < 0.5:
            to_come -= 1
            request = random_request(chance, len(run.requests), prefixes, longest)
            run.requests[request.sequence_id] = request
            run.tokens[request.sequence_id] = []
            constraint = None
            if chance.random() < 0.3:
                guess = runner.model.answer(request)[: chance.choice([0, 0, 5, 60])]
                constraint = Watchful(guess)
                run.constraints.append(constraint)
            sequence = engine.add(request, constraint=constraint)
            if constraint is not None:
                constraint.told = sequence.output_token_ids
        if run.requests and chance.random() < 0.03:
            victim = chance.choice(list(run.requests))
            engine.abort(victim)
            run.aborted.add(victim)
        for output in engine.step():
            if isinstance(output, SequenceStarted):
                assert output.sequence_id not in run.cached  # once,
                assert not run.tokens[output.sequence_id]  # and before any token
                run.cached[output.sequence_id] = output.num_cached_tokens
                continue
            assert isinstance(output, TokenOutput)
            assert output.sequence_id not in run.finished
            run.tokens[output.sequence_id].append(output.token_id)
            if output.finish_reason is not None:
                run.finished.add(output.sequence_id)
        engine.scheduler.check()
    return run


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    return [run_schedule(seed) for seed in range(NUM_SCHEDULES)]


def test_every_sequence_gets_the_tokens_it_would_have_got_alone(runs: list[Run]):
    for run in runs:
        for sequence_id, request in run.requests.items():
            expected = run.runner.model.answer(request)
            if sequence_id in run.aborted and sequence_id not in run.finished:
                assert run.tokens[sequence_id] == expected[: len(run.tokens[sequence_id])]
            else:
                assert run.tokens[sequence_id] == expected
                assert sequence_id in run.finished


def test_what_is_told_of_the_cache_is_some_of_the_prompt_and_no_more_than_was_found(
    runs: list[Run],
):
    for run in runs:
        for sequence_id, num_tokens in run.cached.items():
            assert 0 <= num_tokens < len(run.requests[sequence_id].prompt_token_ids)
        assert sum(run.cached.values()) <= run.engine.statistics().prefix_cache_hits
    assert any(any(run.cached.values()) for run in runs)


def test_constraints_are_asked_by_one_thread_at_a_time_once_all_before_is_told(runs: list[Run]):
    constraints = [constraint for run in runs for constraint in run.constraints]
    assert len(constraints) > NUM_SCHEDULES
    assert [fault for constraint in constraints for fault in constraint.faults] == []


def test_nothing_is_left_when_all_have_ended(runs: list[Run]):
    for run in runs:
        blocks = run.engine.scheduler.block_manager
        assert blocks.num_free_blocks == blocks.num_blocks
        assert not blocks.owners
        assert run.engine.statistics().num_running == 0
        assert run.engine.statistics().num_waiting == 0


def test_the_schedules_did_what_they_are_meant_to_test(runs: list[Run]):
    """Else the tests above would show nothing."""
    seen: Counter[str] = Counter()
    for run in runs:
        statistics = run.engine.statistics()
        seen["shared steps"] += shares_a_step(run.runner.batches)
        seen["preempted"] += statistics.num_preemptions > 0
        seen["taken back"] += len(run.runner.batches) > run.full_at
        seen["paused"] += statistics.num_pauses > 0
        seen["prefix hits"] += statistics.prefix_cache_hits > 0
        seen["drafts accepted"] += statistics.num_accepted_tokens > 0
        seen["drafts refused"] += statistics.num_accepted_tokens < statistics.num_drafted_tokens
        seen["chunked"] += any(is_chunked(run.runner.batches, each) for each in run.requests)
        seen["aborted"] += bool(run.aborted - run.finished)
        seen["two steps in flight"] += any(
            set(a.decodes.sequence_ids) & set(b.decodes.sequence_ids)
            for a, b in zip(run.runner.batches, run.runner.batches[1:], strict=False)
        )
    few = {name: count for name, count in seen.items() if count < NUM_SCHEDULES // 20}
    assert not few, seen
