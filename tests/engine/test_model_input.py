from __future__ import annotations

import torch

from engine.attention import LoneDecode, PagedStep
from engine.batch import ScheduledBatch, ScheduledDecode, ScheduledPrefill
from engine.kv_cache import KVCache
from engine.model_input import ModelInput, build_model_input, model_order
from engine.sampling_params import SamplingParams

PARAMS = SamplingParams(max_tokens=1)


def decode(sequence_id: int, slot: int, position: int, table: tuple[int, ...]) -> ScheduledDecode:
    return ScheduledDecode(sequence_id, slot, position, table, PARAMS, seed=0)


def prefill(token_ids: tuple[int, ...], table: tuple[int, ...]) -> ScheduledPrefill:
    return ScheduledPrefill(9, 0, token_ids, table, PARAMS, seed=0)


def build(batch: ScheduledBatch, last_tokens: list[int]) -> tuple[ModelInput, PagedStep]:
    cache = KVCache(
        num_layers=1,
        num_blocks=20,
        block_size=4,
        num_kv_heads=1,
        head_dim=2,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    built = build_model_input(batch, torch.tensor(last_tokens), cache, is_batch_invariant=True)
    assert isinstance(built.attention, PagedStep)
    return built, built.attention


def test_decoding_sequences_lie_first_and_the_longest_of_them_first():
    one, two, three = (decode(i, i, position, (0,)) for i, position in enumerate((5, 9, 7)))
    prompts = (prefill((1, 2), (0,)),)
    ordered = model_order(ScheduledBatch((one, two, three), prompts))
    assert ordered == ScheduledBatch((two, three, one), prompts)


def test_each_token_has_its_id_position_and_slot():
    batch = ScheduledBatch(
        (decode(1, 2, 9, (3, 4, 8, 5)), decode(2, 0, 3, (7, 6))),
        (prefill((31, 32, 33, 34, 35), (10, 2, 11)), prefill((41,), (12,))),
    )
    built, step = build(batch, last_tokens=[70, 71, 72])
    assert built.token_ids.tolist() == [72, 70, 31, 32, 33, 34, 35, 41]
    assert built.position_ids.tolist() == [9, 3, 0, 1, 2, 3, 4, 0]
    assert step.slot_mapping.tolist() == [8 * 4 + 1, 7 * 4 + 3, 40, 41, 42, 43, 8, 48]
    assert built.logits_indices.tolist() == [0, 1, 6, 7]
    assert step.prompts == (slice(2, 7), slice(7, 8))
    for indices in (built.token_ids, built.position_ids, step.slot_mapping, built.logits_indices):
        assert indices.dtype == torch.int64


def test_a_decoding_sequence_sees_its_tokens_and_no_block_beyond_them():
    _, step = build(ScheduledBatch((decode(1, 0, 7, (3, 4, 8)),), ()), last_tokens=[1])
    assert step.decodes == (LoneDecode(row=0, num_tokens=8, first_slot=12, blocks=None),)


def test_prompts_alone_need_no_earlier_tokens():
    built, step = build(ScheduledBatch((), (prefill((5, 6), (0,)),)), last_tokens=[1])
    assert built.token_ids.tolist() == [5, 6]
    assert step.decodes == ()
