from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

from engine.attention import prompt
from engine.attention.gpu import GpuStep
from engine.attention.kv_cache import KVCache
from engine.config import KVDtype
from engine.execution.gpu_input import build_gpu_input
from engine.execution.model_input import build_model_input, model_order
from engine.execution.slot_state import SlotState
from engine.kernels.choice import step_kernels
from engine.sampling_params import SamplingParams
from engine.scheduling.batch import Decodes, ScheduledBatch, ScheduledChunk, SlotStart
from tests.engine.graph_guard import NothingForTheHost

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engine.attention.interface import ModelInput

BLOCK_SIZE, MAX_SEQS = 4, 6


class Built:
    """A batch over scattered blocks, laid out both ways."""

    def __init__(self, decoding: list[int], chunks: list[tuple[int, tuple[int, ...]]]) -> None:
        """decoding: positions; chunks: where each starts, and its tokens."""
        self.sent: list[NDArray[Any]] = []
        self.cache = KVCache(
            num_layers=1,
            num_blocks=60,
            block_size=BLOCK_SIZE,
            num_kv_heads=1,
            head_dim=2,
            kept_as=KVDtype.FLOAT32,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        self.state = SlotState(max_num_seqs=MAX_SEQS, max_model_len=40, cache=self.cache)
        self.state.last_tokens.copy_(torch.arange(100, 100 + MAX_SEQS + 1))
        blocks = torch.randperm(60).view(MAX_SEQS, 10).tolist()
        count = len(decoding) + len(chunks)
        starts = tuple(
            SlotStart(slot, slot, SamplingParams(max_tokens=1), 0, (0,), (), tuple(blocks[slot]))
            for slot in range(count)
        )
        slots = tuple(range(len(decoding)))
        self.batch = model_order(
            ScheduledBatch(
                Decodes(slots, slots, tuple(decoding)),
                tuple(
                    ScheduledChunk(slot, slot, start, token_ids, 1)
                    for slot, (start, token_ids) in enumerate(chunks, len(decoding))
                ),
                starts,
            )
        )
        self.state.take_in(self.batch)

    def send(self, array: NDArray[Any]) -> torch.Tensor:
        self.sent.append(array)
        with _disable_current_modes():  # it is what may look at the host's numbers
            return torch.from_numpy(array)

    def build(self, name: Literal["triton", "torch"] = "triton") -> tuple[ModelInput, GpuStep]:
        kernels = step_kernels(name)
        built = build_gpu_input(self.batch, self.state, self.cache, kernels, self.send)
        assert isinstance(built.attention, GpuStep)
        return built, built.attention

    def slots_of(self, slot: int, stop: int) -> list[int]:
        return self.state.cache_slots(slot, np.arange(stop)).tolist()


MIXED = [([5, 20, 11], [(8, (1, 2, 3)), (0, (4, 5))]), ([3], []), ([], [(0, (7, 8, 9))])]


@pytest.mark.parametrize(("decoding", "chunks"), MIXED)
def test_rows_are_those_of_any_other_step(
    decoding: list[int], chunks: list[tuple[int, tuple[int, ...]]]
):
    made = Built(decoding, chunks)
    built, step = made.build()
    plain = build_model_input(made.batch, made.state, made.cache, is_batch_invariant=False)
    for mine, other in (
        (built.token_ids, plain.token_ids),
        (built.position_ids, plain.position_ids),
        (built.logits_indices, plain.logits_indices),
        (step.positions, plain.position_ids),
        (step.slot_mapping, plain.attention.slot_mapping),  # type: ignore[attr-defined]
    ):
        assert mine.dtype == torch.int64
        assert torch.equal(mine, other)


def test_decoding_rows_find_their_blocks_on_the_device():
    made = Built([5, 20, 11], [(8, (1, 2, 3))])
    _, step = made.build("triton")
    assert step.decodes is not None
    assert step.decodes.slots.tolist() == [1, 2, 0]  # the longest first
    assert step.decodes.positions.tolist() == [20, 11, 5]
    assert step.decodes.tables is made.state.device_tables
    assert step.decodes.block_size == BLOCK_SIZE
    assert Built([], [(0, (1,))]).build()[1].decodes is None


def test_kernels_that_read_whole_tables_get_them_no_longer_than_the_longest_sequence():
    made = Built([5, 20, 11], [(8, (1, 2, 3))])
    _, step = made.build("torch")
    assert step.decodes is not None
    assert step.decodes.tables.tolist() == made.state.device_tables[:, :6].tolist()


def test_chunks_see_what_is_cached_and_themselves():
    made = Built([5], [(8, (1, 2, 3)), (0, (4, 5))])
    _, step = made.build()
    [group] = step.chunks
    assert group.rows == slice(1, 6)
    assert group.slots.tolist() == made.slots_of(1, 11) + made.slots_of(2, 2)
    assert group.num_rows == (3, 2)
    assert group.num_keys == (11, 2)
    for ends, expected in ((group.row_ends, [0, 3, 5]), (group.key_ends, [0, 11, 13])):
        assert ends.dtype == torch.int32
        assert ends.is_contiguous()
        assert ends.tolist() == expected


def test_chunks_are_divided_where_they_see_too_much(monkeypatch: pytest.MonkeyPatch):
    made = Built([5], [(8, (1, 2, 3)), (0, (4, 5)), (6, (9, 9))])
    monkeypatch.setattr(prompt, "MAX_PROMPT_BYTES", 13 * made.cache.bytes_per_token)
    _, step = made.build()
    first, second = step.chunks
    assert first.rows == slice(1, 6)
    assert second.rows == slice(6, 8)
    assert second.slots.tolist() == made.slots_of(3, 8)
    assert second.row_ends.tolist() == [0, 2]
    assert second.key_ends.tolist() == [0, 8]
    assert first.key_ends.tolist() == [0, 11, 13]


@pytest.mark.parametrize(("decoding", "chunks"), MIXED)
def test_numbers_go_to_the_device_in_as_many_arrays_as_there_are_types(
    decoding: list[int], chunks: list[tuple[int, tuple[int, ...]]]
):
    """And nothing else waits for the device, or is made there of the host's numbers."""
    made = Built(decoding, chunks)
    with NothingForTheHost():
        made.build()
    dtypes = [array.dtype for array in made.sent]
    assert dtypes == ([np.int64, np.int32] if chunks else [np.int64])


def test_input_of_a_decode_is_what_the_step_before_leaves_on_the_device():
    made = Built([5, 20], [(0, (4, 5))])
    made.state.last_tokens[0] = 7
    built, _ = made.build()
    assert built.token_ids.tolist() == [101, 7, 4, 5]
