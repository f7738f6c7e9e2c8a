from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import torch

from engine.execution.drafts import sampled_places
from engine.scheduling.batch import Decodes, ScheduledBatch, ScheduledChunk
from engine.scheduling.drafting import num_accepted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor


def send(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array)


def draft(sequence_id: int, *tokens: int) -> ScheduledChunk:
    """A last token and a draft behind it."""
    return ScheduledChunk(sequence_id, sequence_id, 7, (0, *tokens), len(tokens) + 1)


def places_by_hand(
    batch: ScheduledBatch, tokens: Sequence[int]
) -> tuple[dict[int, int], list[tuple[int, bool]]]:
    """Each slot's last row, and each row's slot with whether it counts."""
    last = {slot: row for row, slot in enumerate(batch.decodes.slots)}
    rows = [(slot, True) for slot in batch.decodes.slots]
    for chunk in batch.chunks:
        if not chunk.num_samples:
            continue
        accepted = num_accepted(chunk.drafts, tokens[len(rows) :])
        last[chunk.slot] = len(rows) + accepted
        rows += [(chunk.slot, place <= accepted) for place in range(chunk.num_samples)]
    return last, rows


def test_rows_count_as_far_as_drafts_are_what_was_sampled():
    batch = ScheduledBatch(Decodes((1,), (1,), (5,)), (draft(2, 40, 41, 42), draft(3, 50)))
    tokens = [30, 40, 41, 99, 43, 50, 51]
    found = sampled_places(batch, torch.tensor(tokens), send)
    assert found.slots.tolist() == [1, 2, 3]
    assert found.last_rows is not None
    assert found.last_rows.tolist() == [0, 3, 6]
    assert found.row_slots is not None
    assert found.row_slots.tolist() == [1, 2, 2, 2, 2, 3, 3]
    assert found.counts is not None
    assert found.counts.tolist() == [True, True, True, True, False, True, True]


def test_a_draft_that_fails_at_once_leaves_its_first_row():
    found = sampled_places(
        ScheduledBatch(Decodes(), (draft(2, 40, 41),)), torch.tensor([1, 41, 2]), send
    )
    assert found.counts is not None
    assert found.counts.tolist() == [True, False, False]


def test_without_drafts_every_row_is_a_sequences_last():
    chunks = (ScheduledChunk(4, 4, 0, (1, 2), 0), ScheduledChunk(5, 5, 0, (1, 2), 1))
    batch = ScheduledBatch(Decodes((1, 2), (2, 0), (5, 6)), chunks)
    found = sampled_places(batch, torch.tensor([7, 8, 9]), send)
    assert found.slots.tolist() == [2, 0, 5]
    assert found.last_rows is None
    assert found.row_slots is None
    assert found.counts is None


def test_any_batch_is_judged_as_the_host_would_judge_it():
    chance = random.Random(5)
    for _ in range(60):
        chunks = []
        for sequence_id in range(3, 3 + chance.randrange(1, 5)):
            kind = chance.randrange(4)
            if kind == 0:
                chunks.append(ScheduledChunk(sequence_id, sequence_id, 0, (1, 2), kind))
            elif kind == 1:
                chunks.append(ScheduledChunk(sequence_id, sequence_id, 0, (1, 2), 1))
            else:
                drafts = [chance.randrange(2) for _ in range(chance.randrange(1, 5))]
                chunks.append(draft(sequence_id, *drafts))
        batch = ScheduledBatch(Decodes((0, 1), (0, 1), (5, 6)), tuple(chunks))
        num_rows = 2 + sum(chunk.num_samples for chunk in chunks)
        tokens = [chance.randrange(2) for _ in range(num_rows)]
        last, rows = places_by_hand(batch, tokens)
        found = sampled_places(batch, torch.tensor(tokens), send)
        slots = found.slots.tolist()
        last_rows = range(num_rows) if found.last_rows is None else found.last_rows.tolist()
        assert dict(zip(slots, last_rows, strict=True)) == last
        if found.counts is not None and found.row_slots is not None:
            assert list(zip(found.row_slots.tolist(), found.counts.tolist(), strict=True)) == rows
