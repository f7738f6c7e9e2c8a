"""Where prompts are cut, and that all of them goes one way, whatever was cached."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core import Engine
from engine.sampling_params import SamplingParams
from engine.scheduling.batch import Decodes, ScheduledBatch, ScheduledChunk
from engine.scheduling.pieces import chunk_stop, split
from tests.engine.fake_runner import FakeRunner, config, request

if TYPE_CHECKING:
    from collections.abc import Sequence

SIZE = 4
PARAMS = SamplingParams(max_tokens=5, temperature=0)


def chunk(start: int, stop: int, *, num_samples: int = 1) -> ScheduledChunk:
    return ScheduledChunk(1, 0, start, tuple(range(start, stop)), num_samples)


def spans(batch: ScheduledBatch) -> list[tuple[int, int, int]]:
    return [(each.start, each.stop, each.num_samples) for each in batch.chunks]


@pytest.mark.parametrize("stop", [5, 12, 14])
def test_a_prompt_goes_whole_and_apart_from_those_who_decode(stop):
    prompts, rest = split(ScheduledBatch(Decodes((7,), (3,), (9,)), (chunk(4, stop),)), SIZE)
    assert spans(prompts) == [(4, stop, 1)]
    assert (len(prompts.decodes), rest.sequence_ids) == (0, (7,))


def test_what_begins_within_a_block_goes_with_those_who_decode():
    prompts, rest = split(ScheduledBatch(Decodes(), (chunk(6, 14),)), SIZE)
    assert (prompts.sequence_ids, spans(rest)) == ((), [(6, 14, 1)])


@pytest.mark.parametrize("num_samples", [1, 6])
def test_a_last_token_goes_as_decodes_do_wherever_it_is_with_or_without_a_draft(num_samples):
    last = replace(chunk(8, 8 + num_samples, num_samples=num_samples), is_decode=True)
    prompts, rest = split(ScheduledBatch(Decodes(), (last,)), SIZE)
    assert (prompts.sequence_ids, spans(rest)) == ((), [(8, 8 + num_samples, num_samples)])


def test_a_batch_of_decodes_stays_the_batch_it_was():
    batch = ScheduledBatch(Decodes((7,), (3,), (9,)), ())
    assert split(batch, SIZE)[1] is batch


def test_a_chunk_stops_between_blocks_or_where_its_prompt_ends():
    assert chunk_stop(4, 30, 9, SIZE) == 12
    assert chunk_stop(4, 13, 9, SIZE) == 13
    assert chunk_stop(4, 30, 3, SIZE) == 4


def ways(batches: Sequence[ScheduledBatch], prompts: dict[int, int]) -> dict[int, dict[int, str]]:
    """By sequence and position of its prompt: the way by which it was computed last."""
    found: dict[int, dict[int, str]] = {sequence_id: {} for sequence_id in prompts}
    for batch in batches:
        for part, way in zip(split(batch, SIZE), ("prompt", "rest"), strict=True):
            for each in part.chunks:
                for position in range(each.start, min(each.stop, prompts[each.sequence_id])):
                    found[each.sequence_id][position] = way
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.integers(0, 3), st.sampled_from([None, 0])),
        min_size=1,
        max_size=8,
    ),
    st.integers(8, 40),
)
def test_all_of_a_prompt_goes_one_way_with_and_without_a_hit(asked, budget):
    """Prompts of all lengths, some of which begin alike, some told of, in steps of any size.

    Room for one sequence, as on an idle server: beside others a step may have less room than a
    block takes, and what is cut there is shared with nobody.
    """
    sizes = config(
        max_num_seqs=1,
        max_num_batched_tokens=budget,
        block_size=SIZE,
        max_model_len=64,
        num_blocks=40,
    )
    runner = FakeRunner(sizes)
    engine = Engine.with_runner(runner, sizes)
    prompts: dict[int, int] = {}
    for number, (length, family, told) in enumerate(asked):
        tokens = [(family * 7 + place) % 50 for place in range(length)]
        engine.add(request(number, tokens, replace(PARAMS, prompt_logprobs=told)))
        prompts[number] = length
    while engine.has_work:
        engine.step()
    for sequence_id, by_position in ways(runner.batches, prompts).items():
        assert set(by_position.values()) == {"prompt"}, sequence_id


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(4, 24))
def test_no_block_is_found_that_went_another_way(lengths, budget):
    """Four at a time, all beginning alike: who finds a block finds what it would have computed."""
    sizes = config(
        max_num_seqs=4,
        max_num_batched_tokens=budget,
        block_size=SIZE,
        max_model_len=64,
        num_blocks=40,
    )
    runner = FakeRunner(sizes)
    engine = Engine.with_runner(runner, sizes)
    for number, length in enumerate(lengths):
        engine.add(request(number, list(range(length)), PARAMS))
    written: dict[int, str] = {}  # by block: how its first token was computed last
    while engine.has_work:
        engine.step()
        blocks = engine.scheduler.block_manager
        for batch in runner.batches[-1:]:
            for part, way in zip(split(batch, SIZE), ("prompt", "rest"), strict=True):
                for each in part.chunks:
                    if each.sequence_id not in blocks.owners:
                        continue
                    table = blocks.block_table(each.sequence_id)
                    for position in range(each.start, each.stop):
                        written[table[position // SIZE]] = way
        assert all(written.get(block) != "rest" for block in blocks._digest_of)
