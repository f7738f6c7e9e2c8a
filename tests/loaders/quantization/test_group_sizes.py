import pytest

from loaders.quantization.group_sizes import common_group_size, explains_groups, is_odd_one_out
from loaders.quantization.packed_format import PackedFormat


def gptq(group_size=-1):
    return PackedFormat("gptq", "gptq", 4, group_size)


def gemv(group_size=-1):
    return PackedFormat("awq", "gemv", 4, group_size)


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        ([(512, 4), (1408, 11)], 128),
        ([(512, 1), (1408, 1)], -1),
        ([(576, 5), (1536, 12)], 128),  # the last group of 576 is short
        ([(480, 5), (960, 10)], 96),
        ([(512, 5), (1408, 11)], None),
    ],
)
def test_the_size_that_explains_every_layers_groups_is_found(layers, found):
    assert common_group_size(gptq(), layers) == found


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        ([(512, 8), (1408, 16)], 128),
        ([(512, 32)], 32),
        ([(512, 8)], None),  # groups of 128, 256 or 512 are all stored as eight
    ],
)
def test_padded_groups_tell_a_size_only_where_one_explains_them(layers, found):
    assert common_group_size(gemv(), layers) == found


def test_padded_groups_are_explained_by_what_is_stored():
    assert explains_groups(gemv(128), 512, 8)
    assert not explains_groups(gemv(128), 512, 4)
    assert not explains_groups(gemv(96), 512, 8)  # which AutoAWQ cannot write


@pytest.mark.parametrize(
    ("group_size", "layers", "is_odd"),
    [
        (130, [(512, 4), (1408, 11)], True),
        (128, [(512, 4), (1408, 11)], False),
        (96, [(512, 6), (1408, 15)], False),  # nothing else explains them without rest
        (96, [(480, 5), (960, 10)], False),
        (128, [(1440, 12)], False),  # 120 would, but 128 is what tools offer
        (500, [(256, 1)], False),
    ],
)
def test_a_size_with_rests_gives_way_to_one_without(group_size, layers, is_odd):
    assert is_odd_one_out(gptq(group_size), layers) is is_odd
