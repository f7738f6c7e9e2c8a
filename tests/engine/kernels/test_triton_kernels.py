"""Both sets of kernels give the same for every operation; what one launches is counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from engine.kernels.choice import step_kernels
from engine.kernels.launches import counted
from engine.kernels.step_kernels import DecodeRows, HeadNorm, KVLayer, Order
from tests.engine.kernels.poisoned import DEVICE, assert_close

if TYPE_CHECKING:
    from engine.kernels.step_kernels import StepKernels

pytest.importorskip("triton", reason="Triton is not installed")

HEADS, KV_HEADS, HEAD_DIM, BLOCK = 9, 3, 64, 16
WIDTH = HEADS * HEAD_DIM
BOTH = {"triton": step_kernels("triton"), "torch": step_kernels("torch")}


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE)


def decode(kernels: StepKernels, drawn: dict[str, torch.Tensor]) -> torch.Tensor:
    """Run what is between a layer's products, for two sequences of 3 and 20 tokens."""
    slots = torch.tensor([BLOCK + 3, 3 * BLOCK + 4], device=DEVICE)
    rows = DecodeRows(
        slots=torch.tensor([1, 0], device=DEVICE),
        positions=torch.tensor([3, 20], device=DEVICE),
        tables=torch.tensor([[2, 3], [1, 0]], device=DEVICE),
        block_size=BLOCK,
    )
    layer = KVLayer(drawn["kept"].clone(), None)
    order = Order.of(torch.arange(WIDTH - 1, -1, -1, device=DEVICE))
    norm = HeadNorm(drawn["norms"][0], drawn["norms"][1], 1e-6)
    query = kernels.rotate_and_store(
        drawn["qkv"],
        drawn["rotation"],
        rows.positions,
        slots,
        layer,
        num_heads=HEADS,
        head_norm=norm,
    )
    attended = kernels.decode_attention(
        query, layer, rows, scale=HEAD_DIM**-0.5, window=None, order=order
    )
    normed = kernels.add_norm(drawn["residual"].clone(), attended, drawn["weight"], 1e-5, order)
    return kernels.silu_mul(normed)


def test_a_layer_of_triton_kernels_is_one_of_the_references():
    drawn = {
        "kept": draw(4 * BLOCK, 2, KV_HEADS, HEAD_DIM),
        "qkv": draw(2, (HEADS + 2 * KV_HEADS) * HEAD_DIM),
        "rotation": draw(21, 2, HEAD_DIM),
        "norms": draw(2, HEAD_DIM),
        "residual": draw(2, WIDTH),
        "weight": draw(WIDTH),
    }
    expected = decode(BOTH["torch"], drawn)
    with counted() as launches:
        found = decode(BOTH["triton"], drawn)
    assert_close(found, expected)
    del launches["paged_decode_merge"]  # of which there may be one
    assert launches == {"rotate_and_store": 1, "paged_decode": 1, "add_norm": 1, "silu_mul": 1}


def test_the_references_launch_nothing():
    with counted() as launches:
        BOTH["torch"].silu_mul(draw(1, 4))
    assert not launches
