"""Pieces of a packed weight written out, in Triton's interpreter, and products by them."""

from __future__ import annotations

import pytest
import torch

from loaders.model.kernels.triton import dequantize
from loaders.model.kernels.triton.levels import INTERPRETED
from loaders.model.kernels.triton.pack import PackedPlanes, pack, unpack
from loaders.model.kernels.triton.workspace import Workspace
from loaders.quantization import plane_layout
from tests.grouped_weights import exact, grouped_weight

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="tests/gpu runs it on a GPU")

# One rounding of the largest weight, twice: the interpreter cuts off where a GPU rounds.
MAX_ERROR = {torch.float16: 2**-10, torch.bfloat16: 2**-7, torch.float32: 2**-22}


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(
    ("group_size", "zeros", "dtype"),
    [
        (128, "common", torch.float16),
        (32, "whole", torch.bfloat16),
        (24, "float", torch.float16),
        (-1, "whole", torch.float32),
    ],
)
def test_every_weight_is_written_and_nothing_beside_it(bits, group_size, zeros, dtype):
    weight = grouped_weight(bits, group_size, 200, 100, zeros=zeros)
    around = torch.full((200 + 2, 30), torch.nan, dtype=dtype)
    dequantize.dequantize(pack(weight), 64, around[1:-1])
    expected = exact(weight)[64:94].t()
    allowed = MAX_ERROR[dtype] * expected.abs().max()
    assert (around[1:-1].double() - expected).abs().max() <= allowed
    assert around[0].isnan().all()
    assert around[-1].isnan().all()


def test_it_agrees_with_its_reference():
    planes = pack(grouped_weight(6, 16, 48, 100))
    found = torch.empty(48, 100, dtype=torch.float16)
    dequantize.dequantize(planes, 0, found)
    torch.testing.assert_close(found, dequantize.reference(planes, 0, 100, torch.float16))


def test_bytes_beyond_two_to_the_31_are_found():
    """In both planes of 3 bits, of which but a tile of outputs is ever touched."""
    padded_out, blocks = 2**23, 17
    layout = plane_layout.PlaneLayout.of(3, -1, blocks * 128)
    low, high = (
        torch.empty(blocks * 128 * width // 8, padded_out, dtype=torch.uint8)
        for width in layout.widths
    )
    assert (blocks - 1) * 16 * padded_out == 2**31
    last = {"low": low[-32:, -64:], "high": high[-16:, -64:]}
    for plane in last.values():
        plane.copy_(torch.randint(256, plane.shape, dtype=torch.uint8))
    facts = {"scales": torch.ones(1, padded_out).half(), "zeros": None, "common_zero": 4}
    planes, small = (
        PackedPlanes(
            layout=layout,
            **kept,
            **facts,
            in_features=in_features,
            out_features=padded_out,
            group_size=in_features,
            is_exact=True,
        )
        for kept, in_features in (({"low": low, "high": high}, blocks * 128), (last, 128))
    )
    found = torch.empty(blocks * 128, 64, dtype=torch.float16)
    dequantize.dequantize(planes, padded_out - 64, found)
    expected = unpack(small)[:, :64].half() - 4
    assert torch.equal(found[-128:], expected)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("piece_outputs", [64, 128, 1024])
def test_pieces_give_all_outputs(monkeypatch, with_bias, piece_outputs):
    weight = grouped_weight(4, 32, 96, 150)
    planes, x = pack(weight), torch.randn(80, 96)
    bias = torch.randn(150) if with_bias else None
    workspace = Workspace(torch.device("cpu"))
    monkeypatch.setattr(plane_layout, "PIECE_BYTES", 96 * 4 * piece_outputs)
    held = plane_layout.piece_outputs(96, planes.padded_out, 4)
    assert held == min(piece_outputs, 192)
    workspace.reserve(num_partials=0, num_locks=0, weight_bytes=96 * 4 * held)
    found = dequantize.multiply(x, planes, bias, workspace)
    expected = x.double() @ exact(weight).t() + (0 if bias is None else bias.double())
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)
