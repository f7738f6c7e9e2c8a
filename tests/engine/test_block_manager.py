from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.block_manager import BlockManager
from engine.errors import BlockAccountingError


def test_a_sequence_gets_as_many_blocks_as_its_tokens_fill():
    blocks = BlockManager(num_blocks=8, block_size=4)
    blocks.allocate(1, num_tokens=9)
    assert len(blocks.block_table(1)) == 3
    assert blocks.num_free_blocks == 5


def test_blocks_lie_side_by_side_where_a_gap_is_wide_enough():
    blocks = BlockManager(num_blocks=8, block_size=1)
    for sequence_id, num_tokens in ((1, 2), (2, 2), (3, 3)):
        blocks.allocate(sequence_id, num_tokens)
    blocks.free(1)
    blocks.free(3)
    blocks.allocate(4, num_tokens=4)
    assert blocks.block_table(4) == (4, 5, 6, 7)


def test_blocks_are_scattered_where_no_gap_is_wide_enough():
    blocks = BlockManager(num_blocks=4, block_size=1)
    for sequence_id in range(4):
        blocks.allocate(sequence_id, num_tokens=1)
    blocks.free(0)
    blocks.free(2)
    assert blocks.can_allocate(2)
    blocks.allocate(9, num_tokens=2)
    assert blocks.block_table(9) == (0, 2)
    blocks.check()


def test_more_blocks_than_are_free_are_refused():
    blocks = BlockManager(num_blocks=2, block_size=4)
    assert not blocks.can_allocate(9)
    with pytest.raises(BlockAccountingError, match="needs 3 blocks, 2 are free"):
        blocks.allocate(1, num_tokens=9)
    blocks.check()


def test_a_sequence_cannot_be_given_blocks_twice():
    blocks = BlockManager(num_blocks=4, block_size=4)
    blocks.allocate(1, num_tokens=4)
    with pytest.raises(BlockAccountingError, match="holds blocks already"):
        blocks.allocate(1, num_tokens=4)


def test_check_finds_a_leaked_block():
    blocks = BlockManager(num_blocks=4, block_size=4)
    blocks.allocate(1, num_tokens=4)
    blocks.num_free_blocks += 1
    with pytest.raises(BlockAccountingError, match="4 blocks, 1 held by 1 sequences"):
        blocks.check()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 12)), max_size=40))
def test_blocks_are_never_lost_or_shared(steps: list[tuple[int, int]]):
    """A sequence that has blocks gives them back, one that has none asks for some."""
    blocks = BlockManager(num_blocks=10, block_size=2)
    for sequence_id, num_tokens in steps:
        if sequence_id in blocks.owners:
            blocks.free(sequence_id)
        elif blocks.can_allocate(num_tokens):
            blocks.allocate(sequence_id, num_tokens)
            assert len(blocks.block_table(sequence_id)) == -(-num_tokens // 2)
        blocks.check()
    for sequence_id in blocks.owners:
        blocks.free(sequence_id)
    blocks.check()
    assert blocks.num_free_blocks == blocks.num_blocks
