from __future__ import annotations

import random

import pytest

from engine.errors import BlockAccountingError
from engine.scheduling.block_manager import BlockManager


def named(sequence_id: int, index: int) -> bytes:
    return f"{sequence_id}/{index}".encode()


def fill_and_free(blocks: BlockManager, sequence_id: int, num_blocks: int) -> list[bytes]:
    """Run a sequence whose blocks all get names; return the names."""
    blocks.allocate(sequence_id, num_blocks * blocks.block_size)
    names = [named(sequence_id, index) for index in range(num_blocks)]
    for index, name in enumerate(names):
        blocks.register(sequence_id, index, name)
    blocks.free(sequence_id)
    return names


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
    assert blocks.block_table(4) == [4, 5, 6, 7]


def test_blocks_are_scattered_where_no_gap_is_wide_enough():
    blocks = BlockManager(num_blocks=4, block_size=1)
    for sequence_id in range(4):
        blocks.allocate(sequence_id, num_tokens=1)
    blocks.free(0)
    blocks.free(2)
    blocks.allocate(9, num_tokens=2)
    assert blocks.block_table(9) == [0, 2]
    blocks.check()


def test_sequences_grow_side_by_side_with_room_between_them():
    """A lone sequence's cache is read in place; so it should stay in one piece as it grows."""
    blocks = BlockManager(num_blocks=200, block_size=16)
    blocks.allocate(1, num_tokens=32)
    blocks.allocate(2, num_tokens=32)
    for _ in range(10):
        blocks.grow(1)
        blocks.grow(2)
    for sequence_id in (1, 2):
        table = blocks.block_table(sequence_id)
        assert list(table) == list(range(table[0], table[0] + 12))


def test_growing_ends_where_no_block_is_left():
    blocks = BlockManager(num_blocks=2, block_size=4)
    blocks.allocate(1, num_tokens=4)
    assert blocks.grow(1) is not None
    assert blocks.grow(1) is None
    blocks.check()


def test_more_blocks_than_are_free_are_refused():
    blocks = BlockManager(num_blocks=2, block_size=4)
    with pytest.raises(BlockAccountingError, match="needs 3 blocks, 2 are free"):
        blocks.allocate(1, num_tokens=9)
    blocks.check()


def test_a_sequence_cannot_be_given_blocks_twice():
    blocks = BlockManager(num_blocks=4, block_size=4)
    blocks.allocate(1, num_tokens=4)
    with pytest.raises(BlockAccountingError, match="holds blocks already"):
        blocks.allocate(1, num_tokens=4)


def test_a_prefix_is_found_while_it_is_held_and_after():
    blocks = BlockManager(num_blocks=8, block_size=4)
    blocks.allocate(1, num_tokens=8)
    for index in range(2):
        blocks.register(1, index, named(1, index))
    table = list(blocks.block_table(1))
    assert blocks.find_prefix([named(1, 0), named(1, 1), b"other"]) == table
    blocks.free(1)
    assert blocks.find_prefix([named(1, 0), named(1, 1)]) == table
    assert blocks.find_prefix([b"other", named(1, 1)]) == []
    assert blocks.num_free_blocks == 8


def test_a_found_prefix_is_shared_until_its_last_holder_leaves():
    blocks = BlockManager(num_blocks=4, block_size=4)
    blocks.allocate(1, num_tokens=4)
    blocks.register(1, 0, b"start")
    prefix = blocks.find_prefix([b"start"])
    blocks.allocate(2, num_tokens=8, prefix=prefix)
    assert blocks.block_table(2)[0] == blocks.block_table(1)[0]
    assert blocks.num_free_blocks == 2
    blocks.free(1)
    blocks.check()
    assert blocks.num_free_blocks == 2
    blocks.free(2)
    assert blocks.num_free_blocks == 4
    blocks.check()


def test_a_revived_block_counts_as_missing():
    """Else a cached prefix and what follows it could together take more than there is."""
    blocks = BlockManager(num_blocks=4, block_size=1)
    names = fill_and_free(blocks, 1, 3)
    prefix = blocks.find_prefix(names)
    assert blocks.num_missing_blocks(5, prefix) == 5
    with pytest.raises(BlockAccountingError, match="needs 5 blocks, 4 are free"):
        blocks.allocate(2, num_tokens=5, prefix=prefix)


def test_what_was_unused_for_longest_is_evicted_first_and_ends_before_beginnings():
    blocks = BlockManager(num_blocks=6, block_size=1)
    old = fill_and_free(blocks, 1, 3)
    young = fill_and_free(blocks, 2, 3)
    blocks.allocate(3, num_tokens=2)
    assert len(blocks.find_prefix(old)) == 1
    assert len(blocks.find_prefix(young)) == 3
    blocks.check()


def test_using_a_prefix_makes_it_young_again():
    blocks = BlockManager(num_blocks=4, block_size=1)
    first, second = fill_and_free(blocks, 1, 2), fill_and_free(blocks, 2, 2)
    blocks.allocate(3, num_tokens=2, prefix=blocks.find_prefix(first))
    blocks.free(3)
    blocks.allocate(4, num_tokens=2)
    assert len(blocks.find_prefix(first)) == 2
    assert blocks.find_prefix(second) == []


def test_suspect_blocks_lose_their_names_and_are_to_be_zeroed_once_unheld():
    blocks = BlockManager(num_blocks=4, block_size=1)
    blocks.allocate(1, num_tokens=2)
    blocks.register(1, 0, b"start")
    blocks.allocate(2, num_tokens=2, prefix=blocks.find_prefix([b"start"]))
    shared, own = blocks.block_table(1)
    blocks.free(1, is_suspect=True)
    assert blocks.find_prefix([b"start"]) == []
    assert blocks.take_dirty() == (own,)
    blocks.check()
    blocks.free(2)
    assert blocks.take_dirty() == (shared,)
    assert blocks.take_dirty() == ()
    blocks.check()


def test_blocks_that_nobody_looked_into_keep_their_names_and_are_zeroed_when_those_are_gone():
    blocks = BlockManager(num_blocks=4, block_size=1)
    blocks.allocate(1, num_tokens=2)
    blocks.register(1, 0, b"start")
    named, own = blocks.block_table(1)
    blocks.free(1, is_unseen=True)
    assert blocks.take_dirty() == (own,)
    assert blocks.find_prefix([b"start"]) == [named]
    blocks.check()
    blocks.allocate(2, num_tokens=1, prefix=blocks.find_prefix([b"start"]))
    blocks.free(2)
    blocks.forget_prefixes()
    assert blocks.take_dirty() == (named,)
    blocks.check()


def test_forgetting_all_prefixes_keeps_what_is_held():
    blocks = BlockManager(num_blocks=4, block_size=1)
    names = fill_and_free(blocks, 1, 2)
    blocks.allocate(2, num_tokens=1)
    blocks.register(2, 0, b"held")
    blocks.forget_prefixes()
    assert blocks.find_prefix(names) == blocks.find_prefix([b"held"]) == []
    blocks.check()
    blocks.free(2)
    assert blocks.num_free_blocks == 4


@pytest.mark.parametrize("damage", ["leak", "share", "count", "name"])
def test_check_finds_what_is_wrong(damage: str):
    blocks = BlockManager(num_blocks=4, block_size=4)
    blocks.allocate(1, num_tokens=4)
    blocks.register(1, 0, b"a")
    if damage == "leak":
        blocks._state[3:4] = b"\x00"
    elif damage == "share":
        blocks.allocate(2, num_tokens=4)
        blocks._tables[2][0] = blocks._tables[1][0]
    elif damage == "count":
        blocks._num_free -= 1
    else:
        blocks._digest_of.clear()
    with pytest.raises(BlockAccountingError):
        blocks.check()


@pytest.mark.parametrize("seed", range(30))
def test_blocks_are_never_lost_nor_shared_without_a_name(seed: int):
    chance = random.Random(seed)
    blocks = BlockManager(num_blocks=chance.choice([5, 20, 90]), block_size=2)
    prefixes: dict[int, str] = {}
    for sequence_id in range(300):
        if blocks.owners and chance.random() < 0.5:
            leaver = chance.choice(sorted(blocks.owners))
            blocks.free(leaver, is_suspect=chance.random() < 0.1)
            blocks.take_dirty()
        elif blocks.owners and chance.random() < 0.5:
            blocks.grow(chance.choice(sorted(blocks.owners)))
        else:
            prefixes[sequence_id] = chance.choice("xyz")
            names = [f"{prefixes[sequence_id]}{i}".encode() for i in range(4)]
            prefix = blocks.find_prefix(names[: chance.randint(0, 4)])
            num_tokens = 2 * len(prefix) + chance.randint(1, 9)
            if blocks.num_missing_blocks(num_tokens, prefix) <= blocks.num_free_blocks:
                blocks.allocate(sequence_id, num_tokens, prefix)
                for index in range(min(num_tokens // 2, 4)):
                    blocks.register(sequence_id, index, names[index])
        blocks.check()
    for sequence_id in blocks.owners:
        blocks.free(sequence_id)
    blocks.check()
    assert blocks.num_free_blocks == blocks.num_blocks
