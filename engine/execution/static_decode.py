"""A decode step of one shape, in tensors that are made once: what a CUDA graph can hold.

The step reads its rows' slots and positions from two buffers, everything else from what is
resident by slot, and leaves its tokens there. So running it again with other numbers in the two
buffers takes nothing from the host but those: no shape depends on data, nothing waits. Rows
beyond those in use are nobody's: their slot is one more than there are, its blocks empty.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from engine.attention.interface import ModelInput
from engine.attention.paged import attend_one_each
from engine.sampling.row_plan import SamplingPlan
from engine.sampling.sampler import sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from engine.attention.kv_cache import KVCache
    from engine.execution.decoder import Decoder
    from engine.execution.host_ring import ToDevice
    from engine.execution.slot_state import SlotState
    from engine.sampling.row_plan import PlanKey
    from engine.sampling.sampler import SampledRows
    from engine.sampling.state import SamplingState

# Small batches differ most in time by the row, so they get shapes of their own.
ROW_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 224, 256)
MIN_WIDTH = 128  # tokens; each wider shape is a quarter, or half, wider than the one before


def row_bucket(num_rows: int) -> int:
    """How many rows the smallest shape has that holds so many."""
    place = bisect_left(ROW_BUCKETS, num_rows)
    if place < len(ROW_BUCKETS):
        return ROW_BUCKETS[place]
    return -(-num_rows // 64) * 64


def width_bucket(num_tokens: int, block_size: int, max_model_len: int) -> int:
    """How many tokens the smallest shape sees that sees so many; whole blocks."""
    width = MIN_WIDTH
    while width < num_tokens:
        width = width * 3 // 2 if width & (width - 1) == 0 else width * 4 // 3
    longest = -(-max_model_len // block_size) * block_size
    return min(-(-width // block_size) * block_size, longest)


@dataclass(frozen=True, slots=True)
class StaticAttention:
    """The `AttentionStep` of such a step: every row padded to one width."""

    cache: KVCache
    slot_mapping: Tensor  # [rows] int64
    blocks: Tensor  # [rows * blocks_per_row] int64
    num_tokens: Tensor  # [rows, 1, 1, 1] int64
    columns: Tensor  # [width] int64: 0, 1, 2 …
    shown: Tensor  # [1] of the cache's dtype: 0
    hidden: Tensor  # [1]: -inf
    masks: dict[int | None, Tensor] = field(default_factory=dict)  # by window

    def attend(
        self,
        layer_index: int,
        query: Tensor,
        key_value: Tensor,
        *,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """Store the new keys and values, then attend; see `AttentionStep`."""
        self.cache.write(layer_index, self.slot_mapping, key_value)
        seen = self.cache.gather(layer_index, self.blocks, is_fresh=True)
        seen = seen.view(query.shape[0], -1, *seen.shape[1:])
        return attend_one_each(query, seen, scale, self._mask(window))

    def _mask(self, window: int | None) -> Tensor:
        if window not in self.masks:
            is_hidden = self.columns >= self.num_tokens
            if window is not None:
                is_hidden = is_hidden | (self.columns < self.num_tokens - window)
            self.masks[window] = torch.where(is_hidden, self.hidden, self.shown)
        return self.masks[window]


class StaticDecode:
    """Runs decode steps of so many rows over so many tokens."""

    def __init__(
        self,
        num_rows: int,
        width: int,
        *,
        decoder: Decoder,
        cache: KVCache,
        slots: SlotState,
        sampling: SamplingState,
        to_device: ToDevice,
    ) -> None:
        self._to_device = to_device
        self.num_rows = num_rows
        self.width = width
        self._decoder = decoder
        self._cache = cache
        self._state = slots
        self._sampling = sampling
        device = cache.device
        self._padding_slot = sampling.padding_slot
        # One copy fills both.
        self._buffer = torch.zeros(2, num_rows, dtype=torch.int64, device=device)
        self._slots, self._positions = self._buffer.unbind(0)
        self._rows = torch.arange(num_rows, device=device)
        self._columns = torch.arange(width, device=device)
        self._shown = torch.zeros(1, dtype=cache.dtype, device=device)
        self._hidden = torch.full((1,), float("-inf"), dtype=cache.dtype, device=device)

    def fill(self, slots: Sequence[int], positions: Sequence[int]) -> None:
        """Say which rows the next run is about; positions: of their input tokens."""
        missing = self.num_rows - len(slots)
        rows = [[*slots, *[self._padding_slot] * missing], [*positions, *[0] * missing]]
        self._to_device.send_into(self._buffer, np.array(rows, dtype=np.int64))

    def run(self, key: PlanKey) -> SampledRows:
        """Run the step; what it samples is also left in the slots.

        key: what sampling the rows takes, at least; see `row_plan.plan_key`.
        """
        slots, positions = self._slots, self._positions
        size = self._cache.block_size
        tables = self._state.device_tables.index_select(0, slots)
        current = torch.gather(tables, 1, (positions // size).unsqueeze(1)).squeeze(1)
        logits = self._decoder.logits(
            ModelInput(
                token_ids=self._state.last_tokens.index_select(0, slots),
                position_ids=positions,
                logits_indices=self._rows,
                attention=StaticAttention(
                    cache=self._cache,
                    slot_mapping=current * size + positions % size,
                    blocks=tables[:, : self.width // size].reshape(-1),
                    num_tokens=(positions + 1).view(-1, 1, 1, 1),
                    columns=self._columns,
                    shown=self._shown,
                    hidden=self._hidden,
                ),
            )
        )
        plan = SamplingPlan(key, slots=slots, positions=positions + 1)
        rows = sample(logits, plan, self._sampling)
        self._state.last_tokens.index_copy_(0, slots, rows.tokens)
        self._sampling.record(slots, rows.tokens)
        return rows
