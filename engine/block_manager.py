"""Counts the KV cache's blocks and knows which sequence holds which.

Numbers only: the memory behind them is `kv_cache`'s, and who may have blocks is `scheduler`'s to
say. A sequence gets at once every block it can grow into, side by side where a gap is wide enough:
nothing runs out of blocks half-way, and a lone sequence's cache can be read in place rather than
gathered.
"""

from __future__ import annotations

from engine.errors import BlockAccountingError

_FREE, _TAKEN = b"\x01", b"\x00"


class BlockManager:
    """Hands out blocks `0 … num_blocks - 1` of `block_size` tokens each."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_free_blocks = num_blocks
        # One byte a block, so that looking for a gap is one search for a run of _FREE.
        self._state = bytearray(_FREE * num_blocks)
        self._tables: dict[int, tuple[int, ...]] = {}

    def can_allocate(self, num_tokens: int) -> bool:
        """Whether enough blocks for this many tokens are free."""
        return self._blocks_for(num_tokens) <= self.num_free_blocks

    def allocate(self, sequence_id: int, num_tokens: int) -> None:
        """Give a sequence every block it will ever need; ask `can_allocate` first."""
        num_blocks = self._blocks_for(num_tokens)
        if num_blocks > self.num_free_blocks:
            raise BlockAccountingError(
                f"sequence {sequence_id} needs {num_blocks} blocks, {self.num_free_blocks} are free"
            )
        if sequence_id in self._tables:
            raise BlockAccountingError(f"sequence {sequence_id} holds blocks already")

        table = self._find_run(num_blocks) or self._find_scattered(num_blocks)
        for block in table:
            self._state[block : block + 1] = _TAKEN
        self.num_free_blocks -= num_blocks
        self._tables[sequence_id] = table

    def block_table(self, sequence_id: int) -> tuple[int, ...]:
        """Give a sequence's blocks, in the order of its tokens."""
        return self._tables[sequence_id]

    def free(self, sequence_id: int) -> None:
        """Take a sequence's blocks back."""
        table = self._tables.pop(sequence_id)
        for block in table:
            self._state[block : block + 1] = _FREE
        self.num_free_blocks += len(table)

    @property
    def owners(self) -> frozenset[int]:
        """Every sequence that holds blocks."""
        return frozenset(self._tables)

    def check(self) -> None:
        """Raise `BlockAccountingError` unless every block is free, or held by one sequence.

        With no sequence left it follows that all blocks are free.
        """
        held = [block for table in self._tables.values() for block in table]
        if len(held) != len(set(held)):
            raise BlockAccountingError(f"blocks are held twice: {sorted(held)}")
        if any(self._state[block : block + 1] != _TAKEN for block in held):
            raise BlockAccountingError("a block that a sequence holds is marked free")
        marked_free = self._state.count(_FREE)
        if not marked_free == self.num_free_blocks == self.num_blocks - len(held):
            raise BlockAccountingError(
                f"{self.num_blocks} blocks, {len(held)} held by {len(self._tables)} sequences,"
                f" {marked_free} marked free, {self.num_free_blocks} counted as free"
            )

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _find_run(self, num_blocks: int) -> tuple[int, ...] | None:
        start = self._state.find(_FREE * num_blocks)
        return None if start < 0 else tuple(range(start, start + num_blocks))

    def _find_scattered(self, num_blocks: int) -> tuple[int, ...]:
        blocks: list[int] = []
        while len(blocks) < num_blocks:
            blocks.append(self._state.index(_FREE, blocks[-1] + 1 if blocks else 0))
        return tuple(blocks)
