"""A decode step of so many rows, in tensors that are made once: what a CUDA graph can hold.

The step reads its rows' slots and positions from one buffer, everything else from what is
resident by slot, and leaves its tokens there. So running it again with other numbers in the buffer
takes nothing from the host but those: no shape depends on data, nothing waits. However long the
sequences are, it is the same step, because attention finds their blocks by itself. Rows beyond
those in use are nobody's: their slot is one more than there are, its blocks empty.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

import numpy as np
import torch

from engine.attention.gpu import GpuStep
from engine.attention.interface import ModelInput
from engine.sampling.row_plan import SamplingPlan
from engine.sampling.sampler import sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.attention.kv_cache import KVCache
    from engine.execution.decoder import Decoder
    from engine.execution.host_ring import ToDevice
    from engine.execution.slot_state import SlotState
    from engine.kernels.step_kernels import StepKernels
    from engine.sampling.row_plan import PlanKey
    from engine.sampling.sampler import SampledRows
    from engine.sampling.state import SamplingState

# Small batches differ most in time by the row, so they get shapes of their own.
ROW_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 224, 256)


def row_bucket(num_rows: int) -> int:
    """How many rows the smallest shape has that holds so many."""
    place = bisect_left(ROW_BUCKETS, num_rows)
    if place < len(ROW_BUCKETS):
        return ROW_BUCKETS[place]
    return -(-num_rows // 64) * 64


class StaticDecode:
    """Runs decode steps of so many rows."""

    def __init__(
        self,
        num_rows: int,
        *,
        kernels: StepKernels,
        decoder: Decoder,
        cache: KVCache,
        slots: SlotState,
        sampling: SamplingState,
        to_device: ToDevice,
    ) -> None:
        self._to_device = to_device
        self.num_rows = num_rows
        self._kernels = kernels
        self._decoder = decoder
        self._cache = cache
        self._state = slots
        self._sampling = sampling
        device = cache.device
        self._padding_slot = sampling.padding_slot
        # One copy fills both.
        self._buffer = torch.zeros(2, num_rows, dtype=torch.int64, device=device)
        self._slots, self._positions = self._buffer.unbind(0)

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
        logits = self._decoder.logits(
            ModelInput(
                token_ids=self._state.last_tokens.index_select(0, slots),
                position_ids=positions,
                logits_indices=None,  # of every row
                attention=GpuStep.of_decodes(
                    self._cache, self._kernels, slots, positions, self._state.device_tables
                ),
            )
        )
        plan = SamplingPlan(key, slots=slots, positions=positions + 1)
        rows = sample(logits, plan, self._sampling)
        self._state.last_tokens.index_copy_(0, slots, rows.tokens)
        self._sampling.record(slots, rows.tokens)
        return rows
