"""What stays with a slot from step to step: its block table, and its last token on the device.

A batch brings only what changed (`SlotStart`, `NewBlock`); from here the tensors of a step are
looked up by slot, all rows at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from engine.attention.paged import Run
from engine.execution.host_ring import DirectMemory

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engine.attention.kv_cache import KVCache
    from engine.execution.host_ring import ToDevice
    from engine.scheduling.batch import ScheduledBatch


class SlotState:
    """Block tables and last tokens by slot; a row more than there are slots stays empty."""

    def __init__(
        self,
        *,
        max_num_seqs: int,
        max_model_len: int,
        cache: KVCache,
        to_device: ToDevice | None = None,
    ) -> None:
        """Make room; to_device: how steps send, on the CPU by default."""
        self.to_device = to_device or DirectMemory()
        self.block_size = cache.block_size
        self._empty_block = cache.empty_block
        max_blocks = -(-max_model_len // cache.block_size)
        self.tables: NDArray[np.int64] = np.full(
            (max_num_seqs + 1, max_blocks), cache.empty_block, dtype=np.int64
        )
        tables = torch.from_numpy(self.tables)
        # The same memory on the CPU, a copy elsewhere.
        self.device_tables = tables if self.to_device.is_direct else tables.clone().to(cache.device)
        self.last_tokens = torch.zeros(max_num_seqs + 1, dtype=torch.int64, device=cache.device)
        # Of its first blocks, how many lie side by side.
        self._num_in_run: NDArray[np.int64] = np.zeros(max_num_seqs + 1, dtype=np.int64)
        self._num_blocks: NDArray[np.int64] = np.zeros(max_num_seqs + 1, dtype=np.int64)

    def take_in(self, batch: ScheduledBatch) -> None:
        """Apply what a batch changes; before anything else of its step."""
        for start in batch.starts:
            row, table = self.tables[start.slot], start.block_table
            row.fill(self._empty_block)
            row[: len(table)] = table
            self._num_blocks[start.slot] = len(table)
            self._num_in_run[start.slot] = _run_length(row[: len(table)])
        for new in batch.new_blocks:
            self.tables[new.slot, new.index] = new.block
            self._num_blocks[new.slot] = new.index + 1
            if (
                self._num_in_run[new.slot] == new.index
                and self.tables[new.slot, new.index - 1] == new.block - 1
            ):
                self._num_in_run[new.slot] += 1
        if not self.to_device.is_direct:
            self._send_changes(batch)

    def _send_changes(self, batch: ScheduledBatch) -> None:
        """Have the device's tables follow: whole rows of who starts, single blocks of others."""
        send = self.to_device.send
        if batch.starts:
            slots = np.array([start.slot for start in batch.starts], dtype=np.int64)
            self.device_tables.index_copy_(0, send(slots), send(self.tables[slots]))
        if batch.new_blocks:
            width = self.tables.shape[1]
            new = [(new.slot * width + new.index, new.block) for new in batch.new_blocks]
            places, blocks = send(np.array(new, dtype=np.int64).T.copy()).unbind(0)
            self.device_tables.view(-1).index_copy_(0, places, blocks)

    def cache_slots(
        self, slots: NDArray[np.int64] | int, positions: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Where the cache keeps tokens; positions: [n], of one slot or of a slot each."""
        blocks: NDArray[np.int64] = self.tables[slots, positions // self.block_size]
        return blocks * self.block_size + positions % self.block_size

    def run(self, slot: int, num_tokens: int) -> Run:
        """Say where a sequence's first tokens lie."""
        num_blocks = -(-num_tokens // self.block_size)
        table = self.tables[slot, :num_blocks]
        blocks = None
        if num_blocks > self._num_in_run[slot]:
            blocks = self.to_device.send(table.copy())
        return Run(num_tokens, int(table[0]) * self.block_size, blocks)


def _run_length(table: NDArray[np.int64]) -> int:
    """Count the first blocks that lie side by side."""
    broken = np.flatnonzero(table != table[0] + np.arange(len(table)))
    return int(broken[0]) if len(broken) else len(table)
