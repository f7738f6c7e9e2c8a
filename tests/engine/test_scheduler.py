from __future__ import annotations

import subprocess
import sys

import pytest

from engine.batch import SampledTokens, ScheduledBatch
from engine.errors import BlockAccountingError, NonFiniteLogitsError
from engine.outputs import FinishReason, SequenceFailure, TokenOutput
from engine.sampling_params import SamplingParams
from engine.scheduler import Scheduler
from tests.engine.fake_runner import config, sequence


def scheduled(batch: ScheduledBatch | None) -> tuple[list[int], list[int]]:
    """Which sequences decode, and which begin."""
    assert batch is not None
    return [e.sequence_id for e in batch.decodes], [e.sequence_id for e in batch.prefills]


def sampled(batch: ScheduledBatch, token_id: int = 7) -> SampledTokens:
    return SampledTokens({e.sequence_id: (token_id,) for e in batch.entries}, frozenset())


def test_policy_is_free_of_tensors():
    """Importing the scheduler in a fresh interpreter must not load torch or transformers."""
    program = (
        "import sys, engine.scheduler\n"
        "found = {'torch', 'transformers', 'numpy'} & sys.modules.keys()\n"
        "sys.exit(', '.join(sorted(found)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_nothing_is_scheduled_without_work():
    scheduler = Scheduler(config())
    assert scheduler.schedule() is None
    assert not scheduler.has_work


def test_prompts_come_first_come_first_served():
    scheduler = Scheduler(config(max_num_seqs=2))
    for sequence_id in (5, 3, 4):
        scheduler.add(sequence(sequence_id, 4, SamplingParams(max_tokens=4)))
    assert scheduled(scheduler.schedule()) == ([], [5, 3])
    assert scheduler.num_waiting == 1


def test_prefill_and_decode_share_a_step():
    scheduler = Scheduler(config())
    scheduler.add(sequence(1, 4, SamplingParams(max_tokens=4)))
    scheduler.schedule()
    scheduler.add(sequence(2, 4, SamplingParams(max_tokens=4)))
    assert scheduled(scheduler.schedule()) == ([1], [2])


def test_a_sequence_decodes_before_its_last_token_is_known():
    """Step N+1 is scheduled while N is in flight: its position is one further."""
    scheduler = Scheduler(config())
    scheduler.add(sequence(1, 4, SamplingParams(max_tokens=9)))
    positions = []
    for _ in range(3):
        batch = scheduler.schedule()
        assert batch is not None
        positions += [decode.position for decode in batch.decodes]
    assert positions == [4, 5]


def test_a_steps_prompts_stay_within_the_budget():
    scheduler = Scheduler(config(max_num_batched_tokens=10))
    for sequence_id, length in ((1, 4), (2, 6), (3, 1)):
        scheduler.add(sequence(sequence_id, length, SamplingParams(max_tokens=1)))
    assert scheduled(scheduler.schedule()) == ([], [1, 2])
    assert scheduled(scheduler.schedule()) == ([], [3])


def test_a_prompt_longer_than_the_budget_runs_as_its_steps_only_prompt():
    scheduler = Scheduler(config(max_num_batched_tokens=10))
    for sequence_id, length in ((1, 4), (2, 30), (3, 1)):
        scheduler.add(sequence(sequence_id, length, SamplingParams(max_tokens=1)))
    assert scheduled(scheduler.schedule()) == ([], [1])
    assert scheduled(scheduler.schedule()) == ([], [2])
    assert scheduled(scheduler.schedule()) == ([], [3])


def test_a_sequence_waits_until_all_blocks_it_can_need_are_free():
    scheduler = Scheduler(config(num_blocks=16, block_size=4))
    scheduler.add(sequence(1, 4, SamplingParams(max_tokens=36)))  # 10 blocks
    scheduler.add(sequence(2, 4, SamplingParams(max_tokens=24)))  # 7
    scheduler.add(sequence(3, 4, SamplingParams(max_tokens=1)))  # 2, but behind 2
    assert scheduled(scheduler.schedule()) == ([], [1])
    scheduler.abort(1)
    assert scheduler.schedule() is None  # the launched step still writes to its blocks


def test_a_sequence_is_not_scheduled_beyond_its_last_token():
    """Its length is known ahead, so no step is wasted on it."""
    scheduler = Scheduler(config())
    scheduler.add(sequence(1, 4, SamplingParams(max_tokens=2)))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert first is not None
    assert second is not None
    assert scheduler.schedule() is None
    assert scheduler.update(first, sampled(first)) == [TokenOutput(1, 7, None, None)]
    assert scheduler.update(second, sampled(second)) == [
        TokenOutput(1, 7, None, FinishReason.LENGTH)
    ]
    assert not scheduler.has_work
    scheduler.check()


def test_an_end_token_ends_the_sequence_and_drops_the_token_after_it():
    scheduler = Scheduler(config())
    scheduler.add(sequence(1, 4, SamplingParams(max_tokens=9, stop_token_ids=frozenset({7}))))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert first is not None
    assert second is not None
    assert scheduler.update(first, sampled(first)) == [TokenOutput(1, 7, None, FinishReason.STOP)]
    assert scheduler.schedule() is None
    assert scheduler.block_manager.num_free_blocks < scheduler.block_manager.num_blocks
    assert scheduler.has_work  # its blocks are written to by a launched step
    assert scheduler.update(second, sampled(second)) == []
    assert scheduler.block_manager.num_free_blocks == scheduler.block_manager.num_blocks
    assert not scheduler.has_work


def test_several_tokens_of_one_step_count_up_to_the_one_that_ends_the_sequence():
    scheduler = Scheduler(config())
    scheduler.add(sequence(1, 4, SamplingParams(max_tokens=9, stop_token_ids=frozenset({3}))))
    batch = scheduler.schedule()
    assert batch is not None
    outputs = scheduler.update(batch, SampledTokens({1: (1, 2, 3, 4)}, frozenset()))
    assert [output.token_id for output in outputs if isinstance(output, TokenOutput)] == [1, 2, 3]
    scheduler.check()


def test_a_waiting_sequence_is_aborted_at_once():
    scheduler = Scheduler(config())
    scheduler.add(sequence(1, 4, SamplingParams(max_tokens=9)))
    scheduler.abort(1)
    assert not scheduler.has_work


def test_a_running_sequence_is_aborted_without_further_output():
    scheduler = Scheduler(config())
    scheduler.add(sequence(1, 4, SamplingParams(max_tokens=9)))
    batch = scheduler.schedule()
    assert batch is not None
    scheduler.abort(1)
    scheduler.abort(1)
    assert scheduler.update(batch, sampled(batch)) == []
    assert scheduler.block_manager.num_free_blocks == scheduler.block_manager.num_blocks


def test_aborting_what_is_not_there_changes_nothing():
    scheduler = Scheduler(config())
    scheduler.abort(17)
    scheduler.check()


def test_a_sequence_with_bad_logits_fails_alone():
    scheduler = Scheduler(config())
    for sequence_id in (1, 2):
        scheduler.add(sequence(sequence_id, 4, SamplingParams(max_tokens=9)))
    batch = scheduler.schedule()
    assert batch is not None
    failure, output = scheduler.update(batch, SampledTokens({2: (7,)}, frozenset({1})))
    assert isinstance(failure, SequenceFailure)
    assert isinstance(failure.error, NonFiniteLogitsError)
    assert output == TokenOutput(2, 7, None, None)
    assert scheduled(scheduler.schedule()) == ([2], [])
    scheduler.check()


def test_an_id_cannot_be_used_twice():
    scheduler = Scheduler(config())
    scheduler.add(sequence(1, 4, SamplingParams(max_tokens=9)))
    with pytest.raises(ValueError, match="added already"):
        scheduler.add(sequence(1, 4, SamplingParams(max_tokens=9)))


def test_check_finds_blocks_without_a_sequence():
    scheduler = Scheduler(config())
    scheduler.block_manager.allocate(99, num_tokens=4)
    with pytest.raises(BlockAccountingError, match=r"\[99\] hold blocks without running"):
        scheduler.check()
