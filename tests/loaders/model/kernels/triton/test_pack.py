"""Planes of bytes: every code comes back, and nothing is larger than it must be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from loaders.model.kernels.triton import pack as packing
from loaders.model.kernels.triton.pack import dequantized, pack, unpack
from loaders.quantization.plane_layout import FIELD_WIDTHS, PlaneLayout
from tests.grouped_weights import exact, grouped_weight


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(
    ("group_size", "in_features", "out_features"),
    [(128, 576, 200), (32, 200, 1), (16, 48, 65), (24, 100, 64), (100, 256, 70), (-1, 40, 300)],
)
def test_every_code_comes_back(bits, group_size, in_features, out_features):
    weight = grouped_weight(bits, group_size, in_features, out_features)
    planes = pack(weight)
    assert torch.equal(unpack(planes), weight.codes.t())
    assert torch.equal(dequantized(planes), exact(weight).t().float())


@pytest.mark.parametrize("bits", range(2, 9))
def test_planes_hold_no_bit_too_many(bits):
    weight = grouped_weight(bits, 128, 256, 128)
    planes = pack(weight)
    widths = FIELD_WIDTHS[bits]
    assert sum(widths) == (8 if bits == 7 else bits)
    found = [plane.nbytes for plane in (planes.low, planes.high) if plane is not None]
    assert found == [256 * 128 * width // 8 for width in widths]


def test_a_byte_holds_inputs_that_lie_a_slice_apart():
    weight = grouped_weight(4, 128, 128, 64)
    planes = pack(weight)
    assert planes.layout == PlaneLayout((4,), 64)
    assert torch.equal(planes.low[5] & 15, weight.codes[:, 5])
    assert torch.equal(planes.low[5] >> 4, weight.codes[:, 64 + 5])


def test_both_planes_of_three_bits_are_cut_into_the_same_slices():
    weight = grouped_weight(3, 128, 128, 64)
    planes = pack(weight)
    assert planes.layout == PlaneLayout((2, 1), 16)
    # Input 6 * 16 + 5 is the seventh slice: the third field of the second row of two-bit bytes.
    code = weight.codes[:, 6 * 16 + 5]
    assert torch.equal((planes.low[16 + 5] >> 4) & 3, code & 3)
    assert torch.equal((planes.high[5] >> 6) & 1, code >> 2)


@pytest.mark.parametrize(
    ("bits", "group_size", "slice_inputs"),
    [(4, 128, 64), (4, 32, 32), (4, 24, 64), (8, 96, 32), (8, -1, 64), (6, 16, 16), (3, 48, 16)],
)
def test_no_border_of_a_group_cuts_a_slice_where_that_can_be(bits, group_size, slice_inputs):
    assert PlaneLayout.of(bits, group_size, 4096).slice_inputs == slice_inputs


def test_packing_by_pieces_gives_the_same(monkeypatch):
    weight = grouped_weight(5, 32, 200, 150)
    whole = pack(weight)
    monkeypatch.setattr(packing, "_CODES_AT_ONCE", 256 * 7)
    for one, other in zip(whole.tensors, pack(weight).tensors, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("zeros", "kind", "dtype"), [("whole", "whole", torch.uint8), ("float", "float", torch.float16)]
)
def test_zero_points_take_a_byte_where_they_are_whole(zeros, kind, dtype):
    planes = pack(grouped_weight(4, 32, 64, 64, zeros=zeros))
    assert planes.zeros_kind == kind
    assert planes.zeros.dtype == dtype


def test_zero_points_that_are_all_alike_take_nothing():
    planes = pack(grouped_weight(4, 32, 64, 64, zeros="common"))
    assert (planes.zeros_kind, planes.zeros, planes.common_zero) == ("common", None, 8)
    assert planes.is_exact


def test_a_zero_point_above_a_byte_is_still_exact():
    """The first GPTQ format stores zero points less one: 8 bits reach 256."""
    weight = grouped_weight(8, 32, 64, 64)
    weight.zeros[1, 3] = 256
    planes = pack(weight)
    assert planes.zeros_kind == "float"
    assert planes.is_exact
    assert torch.equal(dequantized(planes), exact(weight).t().float())


def test_scales_keep_float32_where_half_precision_would_lose_them():
    weight = grouped_weight(4, 32, 64, 64)
    assert pack(weight).scales.dtype == torch.float16
    tiny = replace(weight, scales=weight.scales * 1e-6)
    assert pack(tiny).scales.dtype == torch.float32
    huge = replace(weight, scales=weight.scales * 1e8)
    assert pack(huge).scales.dtype == torch.float32
    one_dead = weight.scales.clone()
    one_dead[0, 0] = 1e-9  # beside the others it is nothing, and must not double them all
    planes = pack(replace(weight, scales=one_dead))
    assert planes.scales.dtype == torch.float16
    assert not planes.is_exact
