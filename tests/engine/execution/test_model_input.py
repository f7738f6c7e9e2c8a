from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from engine.attention.kv_cache import KVCache
from engine.attention.paged import LoneDecode, PaddedDecodes, PagedStep
from engine.attention.windows import attend_by_products, attend_in_windows
from engine.config import KVDtype
from engine.execution.model_input import build_model_input, model_order
from engine.execution.slot_state import SlotState
from engine.sampling_params import SamplingParams
from engine.scheduling.batch import Decodes, NewBlock, ScheduledBatch, ScheduledChunk, SlotStart

if TYPE_CHECKING:
    from engine.attention.interface import ModelInput


def start(slot: int, table: tuple[int, ...]) -> SlotStart:
    return SlotStart(slot, slot, SamplingParams(max_tokens=1), 0, (1,), (), table)


def build(
    batch: ScheduledBatch, last_tokens: list[int], **options: Any
) -> tuple[ModelInput, PagedStep]:
    cache = KVCache(
        num_layers=1,
        num_blocks=20,
        block_size=4,
        num_kv_heads=1,
        head_dim=2,
        kept_as=KVDtype.FLOAT32,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    slots = SlotState(max_num_seqs=4, max_model_len=40, cache=cache)
    slots.take_in(batch)
    slots.last_tokens[: len(last_tokens)] = torch.tensor(last_tokens)
    built = build_model_input(batch, slots, cache, is_batch_invariant=False, **options)
    assert isinstance(built.attention, PagedStep)
    return built, built.attention


def test_decoding_sequences_lie_first_and_the_longest_of_them_first():
    chunks = (ScheduledChunk(9, 3, 0, (1, 2), 1),)
    batch = ScheduledBatch(Decodes((11, 12, 13), (0, 1, 2), (5, 9, 7)), chunks)
    ordered = model_order(batch)
    assert ordered.decodes == Decodes((12, 13, 11), (1, 2, 0), (9, 7, 5))
    assert ordered.chunks == chunks


def test_last_tokens_that_the_host_knows_lie_before_other_chunks_and_the_longest_of_them_first():
    prompt, draft = ScheduledChunk(1, 0, 0, (5, 6), 1), ScheduledChunk(2, 1, 9, (5, 6), 2)
    short, long = (
        ScheduledChunk(3, 2, 4, (5,), 1, is_decode=True),
        ScheduledChunk(4, 3, 7, (5,), 1, is_decode=True),
    )
    last_of_a_prompt = ScheduledChunk(5, 4, 30, (5,), 1)
    batch = ScheduledBatch(Decodes(), (prompt, short, draft, last_of_a_prompt, long))
    assert model_order(batch).chunks == (long, short, prompt, draft, last_of_a_prompt)


def test_last_tokens_that_the_host_knows_are_read_together_as_decodes_are():
    batch = model_order(
        ScheduledBatch(
            Decodes((1,), (0,), (9,)),
            (
                ScheduledChunk(9, 1, 0, (31, 32), 1),
                ScheduledChunk(7, 2, 3, (41,), 1, is_decode=True),
                ScheduledChunk(8, 3, 5, (42,), 1, is_decode=True),
            ),
            (start(0, (3, 4, 8)), start(1, (5,)), start(2, (7,)), start(3, (6, 9))),
        )
    )
    built, step = build(batch, last_tokens=[70])
    assert built.token_ids.tolist() == [70, 42, 41, 31, 32]
    lone, together = step.decodes
    assert isinstance(lone, LoneDecode)
    assert isinstance(together, PaddedDecodes)
    assert (lone.row, together.rows, together.width) == (0, slice(1, 3), 8)
    assert together.num_tokens.ravel().tolist() == [6, 4]
    assert [chunk.rows for chunk in step.chunks] == [slice(3, 5)]


def test_each_token_has_its_id_position_and_place():
    batch = ScheduledBatch(
        Decodes((1, 2), (2, 0), (9, 3)),
        (ScheduledChunk(9, 1, 5, (31, 32, 33, 34, 35), 1), ScheduledChunk(8, 3, 0, (41,), 1)),
        (start(2, (3, 4, 8, 5)), start(0, (7, 6)), start(1, (10, 2, 11)), start(3, (12,))),
    )
    built, step = build(batch, last_tokens=[70, 71, 72])
    assert built.token_ids.tolist() == [72, 70, 31, 32, 33, 34, 35, 41]
    assert built.position_ids.tolist() == [9, 3, 5, 6, 7, 8, 9, 0]
    assert step.slot_mapping.tolist() == [8 * 4 + 1, 7 * 4 + 3, 9, 10, 11, 44, 45, 48]
    assert built.logits_indices.tolist() == [0, 1, 6, 7]
    assert [(chunk.rows, chunk.start) for chunk in step.chunks] == [
        (slice(2, 7), 5),
        (slice(7, 8), 0),
    ]
    assert step.chunks[1].run is None
    for indices in (built.token_ids, built.position_ids, step.slot_mapping, built.logits_indices):
        assert indices.dtype == torch.int64


def test_logits_are_made_where_a_chunk_samples_or_tells_of_its_prompt():
    batch = ScheduledBatch(
        Decodes(),
        (
            ScheduledChunk(1, 0, 0, (5, 6, 7), 0),
            ScheduledChunk(2, 1, 3, (8, 9), 2),
            ScheduledChunk(3, 2, 0, (1, 2), 0, prompt_targets=(2, 3)),
        ),
        tuple(start(slot, (slot, slot + 4)) for slot in range(3)),
    )
    built, _ = build(batch, [])
    assert built.logits_indices.tolist() == [3, 4, 5, 6]


def test_a_step_that_samples_nothing_still_has_a_row():
    """Models don't take an empty list of rows."""
    batch = ScheduledBatch(Decodes(), (ScheduledChunk(1, 0, 0, (5, 6), 0),), (start(0, (1,)),))
    built, _ = build(batch, [])
    assert built.logits_indices.tolist() == [0]


def test_a_table_grows_and_a_slot_forgets_who_had_it_before():
    cache = KVCache(
        num_layers=1,
        num_blocks=20,
        block_size=4,
        num_kv_heads=1,
        head_dim=2,
        kept_as=KVDtype.FLOAT32,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    slots = SlotState(max_num_seqs=1, max_model_len=40, cache=cache)
    slots.take_in(ScheduledBatch(Decodes(), (), (start(0, (3, 4)),)))
    slots.take_in(ScheduledBatch(Decodes(), (), (), (NewBlock(0, 2, 5), NewBlock(0, 3, 9))))
    assert slots.tables[0, :4].tolist() == [3, 4, 5, 9]
    assert slots.run(0, 12).blocks is None
    assert slots.run(0, 13).blocks is not None
    slots.take_in(ScheduledBatch(Decodes(), (), (start(0, (7,)),)))
    assert slots.tables[0, :2].tolist() == [7, cache.empty_block]


def test_pieces_are_attended_to_by_the_way_that_was_chosen():
    batch = ScheduledBatch(
        Decodes(), (ScheduledChunk(1, 0, 0, (5, 6, 7, 8), 1),), (start(0, (3,)),)
    )
    chosen = partial(attend_by_products, values_as=torch.float32)
    _, step = build(batch, [], has_pieces=True, attend_piece=chosen)
    assert step.attend_piece is chosen
    _, step = build(batch, [], has_pieces=True)
    assert step.attend_piece is attend_in_windows
