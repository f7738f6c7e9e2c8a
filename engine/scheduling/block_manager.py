"""Counts the KV cache's blocks and knows which sequences hold which.

Numbers only: the memory behind them is `kv_cache`'s, and who may have blocks is `scheduler`'s to
say.

    free ──allocate, grow──▶ held ──last holder frees──▶ free           (never named)
     ▲                        │  ▲                  └──▶ cached         (named by `register`)
     │                        │  └──a prefix is found────── │
     └──────────evicted, in the order of `cached_blocks`────┘

A held block has one holder or, where sequences begin alike, several; only full blocks are ever
shared, so nobody writes to a block that another reads. Blocks of one sequence lie side by side
where they can: a lone sequence's cache is then read in place rather than gathered.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from engine.errors import BlockAccountingError
from engine.scheduling.cached_blocks import CachedBlocks

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

_FREE, _TAKEN = b"\x01", b"\x00"
# Blocks left free after a sequence's own where there is room, for it to grow into.
_GROWTH = 16
# Evicted at once, so that what becomes free lies side by side: one in so many of all blocks.
_EVICTED_SHARE = 64


class BlockManager:
    """Hands out blocks `0 … num_blocks - 1` of `block_size` tokens each."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        # One byte a block, so that looking for a gap is one search for a run of _FREE.
        self._state = bytearray(_FREE * num_blocks)
        self._num_free = num_blocks
        self._num_holders = [0] * num_blocks
        self._tables: dict[int, list[int]] = {}
        self._block_of: dict[bytes, int] = {}  # by digest
        self._digest_of: dict[int, bytes] = {}
        self._cached = CachedBlocks()  # named and unheld
        self._suspect: set[int] = set()  # held blocks that may hold NaN
        self._dirty: list[int] = []  # free blocks that may

    @property
    def num_free_blocks(self) -> int:
        """How many blocks can be had, cached ones included."""
        return self._num_free + len(self._cached)

    @property
    def owners(self) -> set[int]:
        """The sequences that hold blocks."""
        return set(self._tables)

    def num_blocks_for(self, num_tokens: int) -> int:
        """How many blocks so many tokens fill."""
        return -(-num_tokens // self.block_size)

    def find_prefix(self, digests: Iterable[bytes]) -> list[int]:
        """Return the cached blocks of the longest known prefix; digests: of its blocks."""
        found: list[int] = []
        for digest in digests:
            block = self._block_of.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def num_missing_blocks(self, num_tokens: int, prefix: Sequence[int]) -> int:
        """How many of the free blocks `allocate` would use up."""
        revived = sum(block in self._cached for block in prefix)
        return self.num_blocks_for(num_tokens) - len(prefix) + revived

    def allocate(
        self,
        sequence_id: int,
        num_tokens: int,
        prefix: Sequence[int] = (),
        *,
        is_background: bool = False,
    ) -> None:
        """Give a sequence blocks for so many tokens, beginning with those of a found prefix."""
        if sequence_id in self._tables:
            raise BlockAccountingError(f"sequence {sequence_id} holds blocks already")
        missing = self.num_missing_blocks(num_tokens, prefix)
        if missing > self.num_free_blocks:
            raise BlockAccountingError(
                f"sequence {sequence_id} needs {missing} blocks, {self.num_free_blocks} are free"
            )
        for block in prefix:
            self._cached.discard(block)
            if not is_background:
                self._cached.want(block)
            self._num_holders[block] += 1
        fresh = self._take(self.num_blocks_for(num_tokens) - len(prefix))
        self._tables[sequence_id] = [*prefix, *fresh]

    def grow(self, sequence_id: int) -> int | None:
        """Give a sequence one block more, which is returned; None where none is left."""
        if not self.num_free_blocks:
            return None
        table = self._tables[sequence_id]
        beside = table[-1] + 1
        self._make_free(1)
        if beside < self.num_blocks and self._state[beside]:
            block = beside
            self._mark_taken(block)
        else:
            (block,) = self._take(1)
        table.append(block)
        return block

    def block_table(self, sequence_id: int) -> Sequence[int]:
        """Return a sequence's blocks in the order of its tokens; it grows with the sequence."""
        return self._tables[sequence_id]

    def register(
        self, sequence_id: int, index: int, digest: bytes, *, is_background: bool = False
    ) -> None:
        """Name a full block, so that others find it; the first block of a name keeps it."""
        block = self._tables[sequence_id][index]
        if digest not in self._block_of and block not in self._digest_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest
            if not is_background:
                self._cached.want(block)

    def free(self, sequence_id: int, *, is_suspect: bool = False, is_unseen: bool = False) -> None:
        """Take a sequence's blocks back; what has a name stays findable until it is evicted.

        is_suspect: they may hold NaN. They lose their names, and are given out by `take_dirty`
        once nobody holds them.
        is_unseen: it never came to light whether they hold any. They keep their names, as whoever
        finds them would compute the same, and are given out by `take_dirty` when those are gone.
        """
        # Last blocks first, so that they are evicted first: without its beginning the rest of a
        # prefix would never be found.
        for block in reversed(self._tables.pop(sequence_id)):
            if is_suspect:
                self._forget_name(block)
            if is_suspect or is_unseen:
                self._suspect.add(block)
            self._num_holders[block] -= 1
            if not self._num_holders[block]:
                self._let_go(block)

    def sharers(self, sequence_ids: Container[int]) -> list[int]:
        """Return who else holds a block that one of these sequences holds."""
        theirs: set[int] = set()
        for sequence_id, table in self._tables.items():
            if sequence_id in sequence_ids:
                theirs.update(table)
        return [
            sequence_id
            for sequence_id, table in self._tables.items()
            if sequence_id not in sequence_ids and not theirs.isdisjoint(table)
        ]

    def return_dirty(self, blocks: Iterable[int]) -> None:
        """Take blocks back that `take_dirty` gave out and nobody has zeroed."""
        self._dirty.extend(blocks)

    def take_dirty(self) -> tuple[int, ...]:
        """Return the blocks to be zeroed before anybody uses them, once."""
        dirty, self._dirty = tuple(self._dirty), []
        return dirty

    def forget_prefixes(self) -> None:
        """Let all names go; what is held stays held."""
        self._evict(len(self._cached))
        for block in list(self._digest_of):
            self._forget_name(block)

    def check(self) -> None:
        """Raise `BlockAccountingError` unless every block is free, cached or held, and once."""
        holders = Counter(block for table in self._tables.values() for block in table)
        for table in self._tables.values():
            if len(set(table)) != len(table):
                raise BlockAccountingError(f"a sequence holds a block twice: {table}")
        for block in range(self.num_blocks):
            states = (bool(self._state[block]), block in self._cached, holders[block] > 0)
            if sum(states) != 1 or self._num_holders[block] != holders[block]:
                raise BlockAccountingError(
                    f"block {block}: free, cached, held is {states}; it counts"
                    f" {self._num_holders[block]} holders and has {holders[block]}"
                )
            if holders[block] > 1 and block not in self._digest_of and block not in self._suspect:
                raise BlockAccountingError(f"block {block} is shared without a name")
        if self._num_free != self._state.count(_FREE):
            raise BlockAccountingError(
                f"{self._state.count(_FREE)} blocks are free, {self._num_free} are counted"
            )
        if {block: digest for digest, block in self._block_of.items()} != self._digest_of:
            raise BlockAccountingError("names and blocks don't point at each other")
        if not self._digest_of.keys() >= set(self._cached):
            raise BlockAccountingError("a block is cached without a name")

    def _take(self, num_blocks: int) -> list[int]:
        self._make_free(num_blocks)
        blocks = self._find_run(num_blocks) or self._find_scattered(num_blocks)
        for block in blocks:
            self._mark_taken(block)
        return blocks

    def _mark_taken(self, block: int) -> None:
        self._state[block : block + 1] = _TAKEN
        self._num_free -= 1
        self._num_holders[block] = 1

    def _let_go(self, block: int) -> None:
        if block in self._digest_of:
            self._cached.add(block)
            return
        self._state[block : block + 1] = _FREE
        self._num_free += 1
        if block in self._suspect:
            self._suspect.discard(block)
            self._dirty.append(block)

    def _make_free(self, num_blocks: int) -> None:
        """Evict cached blocks until so many are free."""
        if self._num_free < num_blocks:
            spare = self.num_blocks // _EVICTED_SHARE
            self._evict(max(num_blocks - self._num_free, min(spare, len(self._cached))))

    def _evict(self, num_blocks: int) -> None:
        for block in self._cached.take_first(num_blocks):
            self._forget_name(block)
            self._let_go(block)

    def _forget_name(self, block: int) -> None:
        digest = self._digest_of.pop(block, None)
        if digest is not None:
            self._cached.forget(block)
            del self._block_of[digest]

    def _find_run(self, num_blocks: int) -> list[int] | None:
        """Find neighbours; where there is room, with a gap before them for the neighbour there."""
        start = self._state.find(_FREE * (num_blocks + 2 * _GROWTH))
        if start >= 0:
            start += _GROWTH if start else 0
        else:
            start = self._state.find(_FREE * num_blocks)
        return None if start < 0 else list(range(start, start + num_blocks))

    def _find_scattered(self, num_blocks: int) -> list[int]:
        blocks: list[int] = []
        while len(blocks) < num_blocks:
            blocks.append(self._state.index(_FREE, blocks[-1] + 1 if blocks else 0))
        return blocks
