from __future__ import annotations

import pytest
import torch

from engine.execution.step_results import (
    NUM_SECTIONS,
    ResultSections,
    StepResult,
    read_result,
)
from engine.sampling.logprobs import RowLogprobs, row_logprobs
from engine.sampling.sampler import SampledRows
from engine.scheduling.batch import Decodes, ScheduledBatch, ScheduledChunk
from tests.engine.pinned_fakes import FakeMemory


def rows_of(*tokens: int, logprobs: RowLogprobs | None = None) -> SampledRows:
    fine = torch.ones(len(tokens), dtype=torch.bool)
    return SampledRows(torch.tensor(tokens), fine.clone(), fine.clone(), logprobs)


def result_of(*tokens: int) -> StepResult:
    return StepResult(rows_of(*tokens), (None,) * len(tokens), {})


def make_sections() -> tuple[ResultSections, FakeMemory]:
    memory = FakeMemory()
    return ResultSections(memory, max_num_seqs=4), memory


def test_reading_a_step_waits_for_its_own_event_and_once():
    sections, memory = make_sections()
    first = sections.hold(result_of(5))
    sections.hold(result_of(6))
    memory.said.clear()
    first.read()
    assert memory.said == ["waited"]
    assert memory.events[0].query()
    assert not memory.events[1].query()


def test_a_later_step_may_overwrite_the_tensors_that_a_graph_left_its_results_in():
    sections, memory = make_sections()
    result = result_of(5, 7)
    assert result.rows is not None
    held = sections.hold(result)
    result.rows.tokens.fill_(99)
    result.rows.is_finite.fill_(False)
    read = held.read()
    assert read.rows is not None
    assert read.rows.tokens.tolist() == [5, 7]
    assert read.rows.is_finite.tolist() == [True, True]
    assert memory.holds(read.rows.tokens)


def test_everything_a_step_tells_is_copied_prompts_too():
    logprobs = row_logprobs(torch.randn(2, 9), torch.tensor([1, 2]), 3)
    prompt = row_logprobs(torch.randn(5, 9), torch.tensor([1, 2, 3, 4, 5]), 2)
    sections, memory = make_sections()
    read = sections.hold(
        StepResult(rows_of(1, 2, logprobs=logprobs), (3, None), {8: prompt})
    ).read()
    assert read.rows is not None
    assert read.rows.logprobs is not None
    for kept, given in ((read.rows.logprobs, logprobs), (read.prompt_logprobs[8], prompt)):
        for name in ("picked", "top_ids", "top"):
            assert torch.equal(getattr(kept, name), getattr(given, name))
            assert memory.holds(getattr(kept, name))


def test_a_step_that_sampled_nothing_is_read_too():
    sections, _ = make_sections()
    read = sections.hold(StepResult(None, (), {})).read()
    assert read_result(ScheduledBatch(Decodes(), ()), read).token_ids == {}


def test_a_step_whose_memory_another_one_has_is_not_read():
    sections, _ = make_sections()
    held = sections.hold(result_of(1))
    for token in range(NUM_SECTIONS):
        sections.hold(result_of(token))
    with pytest.raises(RuntimeError, match="3 steps were launched since"):
        held.read()


def test_rows_are_sorted_into_sequences_and_failures_told():
    rows = rows_of(10, 11, 12, 13, 14)
    rows.is_finite[0] = False
    rows.has_choice[2] = False
    batch = ScheduledBatch(
        Decodes((1, 2), (0, 1), (4, 4)), (ScheduledChunk(3, 2, 0, (9, 12, 7), 3),)
    )
    sampled = read_result(batch, StepResult(rows, (None,) * 5, {}))
    assert sampled.token_ids == {1: (10,), 2: (11,), 3: ()}
    assert sampled.failed == {1}
    assert sampled.no_candidates == {3}


@pytest.mark.parametrize(
    ("dead_row", "expected"),
    [(0, ()), (1, (12,)), (2, (12, 7)), (3, (12, 7, 8)), (None, (12, 7, 8, 14))],
)
def test_what_a_draft_gave_before_a_row_without_a_choice_is_told(dead_row, expected):
    logprobs = row_logprobs(torch.randn(5, 20), torch.tensor([5, 12, 7, 8, 14]), 2)
    rows = rows_of(5, 12, 7, 8, 14, logprobs=logprobs)
    if dead_row is not None:
        rows.has_choice[1 + dead_row] = False
    batch = ScheduledBatch(
        Decodes((1,), (0,), (4,)), (ScheduledChunk(3, 2, 0, (9, 12, 7, 8), num_samples=4),)
    )
    sampled = read_result(batch, StepResult(rows, (2,) * 5, {}))
    assert sampled.token_ids == {1: (5,), 3: expected}
    assert sampled.no_candidates == (set() if dead_row is None else {3})
    assert len(sampled.logprobs.get(3, ())) == len(expected)


def test_a_row_without_a_choice_behind_what_was_not_sampled_as_drafted_counts_not():
    rows = rows_of(12, 13, 14)
    rows.has_choice[2] = False
    batch = ScheduledBatch(Decodes(), (ScheduledChunk(3, 2, 0, (9, 12, 7), 3),))
    sampled = read_result(batch, StepResult(rows, (None,) * 3, {}))
    assert sampled.token_ids == {3: (12, 13)}
    assert not sampled.no_candidates
