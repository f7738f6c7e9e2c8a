"""Tells group sizes from how many groups layers store."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from loaders.quantization.layouts.awq import zero_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loaders.quantization.packed_format import PackedFormat

# Sizes tried, in this order, when only the number of groups is known.
_USUAL_GROUP_SIZES = (128, 64, 32, 16, 256, 512, 1024)
_PADDED = ("gemv", "gemv_fast")  # store more groups than there are


def explains_groups(packed: PackedFormat, in_features: int, num_stored: int) -> bool:
    """Whether a layer of that format and size stores so many groups."""
    return _stored_groups(packed, in_features) == num_stored


def is_odd_one_out(packed: PackedFormat, layers: Sequence[tuple[int, int]]) -> bool:
    """Whether the layers' (in_features, groups) speak of another size than the one that is given.

    130 explains as many groups of 512 and 1408 inputs as 128 does, but leaves the last one short in
    both, where another size fits all layers without rest.
    """
    size = packed.group_size
    if packed.checkpoint_format in _PADDED or size == -1 or size.bit_count() == 1:
        return False
    has_rest = any(in_features > size and in_features % size for in_features, _ in layers)
    without_rest = {
        None if in_features % groups else in_features // groups for in_features, groups in layers
    }
    return has_rest and len(without_rest) == 1 and None not in without_rest


def common_group_size(packed: PackedFormat, layers: Sequence[tuple[int, int]]) -> int | None:
    """Find the group size that explains every layer's (in_features, stored groups); None if none.

    packed: gives the layout; its own group size is not looked at.
    """
    if packed.checkpoint_format in _PADDED:
        fitting = [size for size in _USUAL_GROUP_SIZES if _fits(packed, size, layers)]
        return fitting[0] if len(fitting) == 1 else None
    if all(groups == 1 for _, groups in layers):
        return -1
    exact = {size // groups for size, groups in layers if size % groups == 0}
    candidates = (*sorted(exact, reverse=True), *_USUAL_GROUP_SIZES)
    return next((size for size in candidates if _fits(packed, size, layers)), None)


def _fits(packed: PackedFormat, group_size: int, layers: Sequence[tuple[int, int]]) -> bool:
    sized = replace(packed, group_size=group_size)
    return all(_stored_groups(sized, size) == groups for size, groups in layers)


def _stored_groups(packed: PackedFormat, in_features: int) -> int | None:
    if packed.checkpoint_format not in _PADDED:
        return packed.num_groups(in_features)
    try:
        return 8 * zero_words(packed, in_features)
    except ValueError:
        return None
