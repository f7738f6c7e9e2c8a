from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from engine.attention.kv_cache import KVCache
from engine.attention.native_step import NativeStep
from engine.config import KVDtype
from engine.execution.native_input import build_native_input
from engine.execution.slot_state import SlotState
from engine.sampling_params import SamplingParams
from engine.scheduling.batch import Decodes, ScheduledBatch, ScheduledChunk, SlotStart

if TYPE_CHECKING:
    from engine.attention.interface import ModelInput

BLOCK_SIZE = 4


def start(slot: int, table: tuple[int, ...]) -> SlotStart:
    return SlotStart(slot, slot, SamplingParams(max_tokens=1), 0, (1,), (), table)


def build(batch: ScheduledBatch, *, has_pieces: bool = False) -> tuple[ModelInput, NativeStep]:
    cache = KVCache(
        num_layers=1,
        num_blocks=20,
        block_size=BLOCK_SIZE,
        num_kv_heads=1,
        head_dim=2,
        kept_as=KVDtype.FLOAT32,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    slots = SlotState(max_num_seqs=4, max_model_len=40, cache=cache)
    slots.take_in(batch)
    slots.last_tokens[:] = torch.tensor([70, 71, 72, 73, 0])
    built = build_native_input(batch, slots, cache, has_pieces=has_pieces)
    assert isinstance(built.attention, NativeStep)
    return built, built.attention


def seen_slots(step: NativeStep, row: int) -> list[int]:
    """Say which places of the cache a row sees."""
    table = step.seen.tables[step.seen.rows[row]]
    positions = range(int(step.seen.positions[row]) + 1)
    return [int(table[p // BLOCK_SIZE]) * BLOCK_SIZE + p % BLOCK_SIZE for p in positions]


def test_each_decode_sees_its_own_blocks_up_to_itself():
    starts = (start(0, (3, 9)), start(2, (7,)))
    built, step = build(ScheduledBatch(Decodes((11, 12), (2, 0), (2, 5)), (), starts))
    assert built.token_ids.tolist() == [72, 70]
    assert built.position_ids.tolist() == [2, 5]
    assert built.logits_indices is None
    assert not built.is_for_cache
    assert step.slots.tolist() == [30, 37]
    assert seen_slots(step, 0) == [28, 29, 30]
    assert seen_slots(step, 1) == [12, 13, 14, 15, 36, 37]
    assert step.pieces is None


def test_rows_of_a_draft_see_each_one_more():
    draft = ScheduledChunk(12, 1, 3, (41, 42, 43), 3, is_decode=True)
    last = ScheduledChunk(13, 3, 0, (51,), 1, is_decode=True)
    starts = (start(0, (3,)), start(1, (5, 8)), start(3, (6,)))
    built, step = build(ScheduledBatch(Decodes((11,), (0,), (1,)), (draft, last), starts))
    assert built.token_ids.tolist() == [70, 41, 42, 43, 51]
    assert built.position_ids.tolist() == [1, 3, 4, 5, 0]
    assert built.logits_indices is not None
    assert built.logits_indices.tolist() == [0, 1, 2, 3, 4]
    assert step.slots.tolist() == [13, 23, 32, 33, 24]
    assert seen_slots(step, 1) == [20, 21, 22, 23]
    assert seen_slots(step, 3) == [20, 21, 22, 23, 32, 33]
    assert step.pieces is None


def test_pieces_say_their_rows_their_first_position_and_their_table():
    chunks = (
        ScheduledChunk(11, 2, 4, (41, 42, 43), 0),
        ScheduledChunk(12, 1, 0, (51, 52), 1),
    )
    starts = (start(1, (3,)), start(2, (5, 8)))
    built, step = build(ScheduledBatch(Decodes(), chunks, starts), has_pieces=True)
    assert built.has_pieces
    assert built.logits_indices is not None
    assert built.logits_indices.tolist() == [4]
    assert step.pieces is not None
    assert step.pieces.tolist() == [[3, 4, 2], [2, 0, 1]]
    assert step.slots.tolist() == [32, 33, 34, 12, 13]
    assert seen_slots(step, 4) == [12, 13]


def test_pieces_after_which_nothing_is_sampled_are_for_the_cache():
    chunk = ScheduledChunk(11, 2, 4, (41, 42, 43, 44), 0)
    batch = ScheduledBatch(Decodes(), (chunk,), (start(2, (5, 8)),))
    built, _ = build(batch, has_pieces=True)
    assert built.is_for_cache
