from __future__ import annotations

from engine.scheduling.cached_blocks import CachedBlocks


def filled() -> CachedBlocks:
    """Blocks 1 to 4, in this order; 1 and 3 are of use to the foreground."""
    cached = CachedBlocks()
    for block in (1, 3):
        cached.want(block)
    for block in (1, 2, 3, 4):
        cached.add(block)
    return cached


def test_blocks_of_the_background_go_first_and_of_each_class_the_oldest():
    cached = filled()
    assert list(cached) == [2, 4, 1, 3]
    assert cached.take_first(3) == [2, 4, 1]
    assert (len(cached), list(cached)) == (1, [3])
    assert cached.take_first(5) == [3]


def test_a_block_that_is_held_again_comes_back_as_the_newest():
    cached = filled()
    cached.discard(1)
    assert 1 not in cached
    cached.add(1)
    assert list(cached) == [2, 4, 3, 1]


def test_a_block_that_the_foreground_finds_is_kept_as_its_own():
    cached = filled()
    cached.discard(2)
    cached.want(2)
    cached.add(2)
    assert list(cached) == [4, 1, 3, 2]


def test_with_its_name_it_is_forgotten_who_wanted_a_block():
    cached = filled()
    assert cached.take_first(4)[-1] == 3
    cached.forget(3)
    cached.add(3)
    cached.want(5)
    cached.add(5)
    assert list(cached) == [3, 5]
