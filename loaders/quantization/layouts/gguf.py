"""GGUF's layout: rows of blocks, each with its codes, scales and minima in one run of bytes.

A block holds 32 or 256 weights of one output. Every type read here is codes times a scale plus a
minimum over groups of 16 or 32, so codes, scales and float zero points describe it exactly (to
float32 rounding). The bit patterns are ggml's own (its `ggml-common.h`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from loaders.checkpoint.files import GGML_BLOCKS
from loaders.quantization.layouts.protocol import INT_DTYPES, TensorRule
from loaders.quantization.packed_format import GGUF_GROUPS

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from torch import Tensor

    from loaders.quantization.layouts.protocol import StoredTensors
    from loaders.quantization.packed_format import PackedFormat

    # Reads one thing out of blocks: uint8 [..., blocks, bytes] to [..., blocks, as many as it has].
    Reading: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class BlockType:
    """What one type's blocks mean; weight = code * scale + minimum, or (code - zero) * scale."""

    name: str
    codes: Reading  # uint8, one a weight
    scales: Reading  # float32, one a group
    minima: Reading | None  # the same; None where every group has the same zero point
    zero: int = 0  # that zero point

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return GGUF_GROUPS[self.name][0]

    @property
    def group_size(self) -> int:
        """Weights that share a scale."""
        return GGUF_GROUPS[self.name][1]

    @property
    def weights(self) -> int:
        """Weights a block."""
        return GGML_BLOCKS[self.name][0]

    @property
    def num_bytes(self) -> int:
        """Bytes a block."""
        return GGML_BLOCKS[self.name][1]


class GgufLayout:
    """One type of blocks: uint8 [out, bytes per row], and in which order the rows are outputs."""

    marker = "blocks"

    def __init__(self, packed: PackedFormat) -> None:
        self._type = BLOCK_TYPES[packed.checkpoint_format]

    def rules(self, in_features: int, out_features: int) -> dict[str, TensorRule]:
        """Say what each tensor must be; without `rows` they are in order."""
        if in_features % self._type.weights:
            raise ValueError(
                f"{in_features} inputs do not fill whole {self._type.name} blocks of"
                f" {self._type.weights}"
            )
        row_bytes = in_features // self._type.weights * self._type.num_bytes
        return {
            "blocks": TensorRule((out_features, row_bytes), ("U8",)),
            "rows": TensorRule((out_features,), INT_DTYPES, is_required=False),
        }

    def codes(self, stored: StoredTensors) -> Tensor:
        """Unpack the codes. A group of one value has code 1, its value for a scale, and zero 0."""
        blocks = self._blocks(stored)
        codes = self._type.codes(blocks)
        if self._type.minima is not None:
            constant = (self._type.scales(blocks) == 0).unsqueeze(-1)
            grouped = codes.view(*constant.shape[:-1], self._type.group_size)
            codes = grouped.masked_fill_(constant, 1)
        return codes.reshape(len(blocks), -1).t()

    def scales(self, stored: StoredTensors) -> Tensor:
        """Multiply the groups' scales by their block's."""
        blocks = self._blocks(stored)
        scales = self._type.scales(blocks)
        if self._type.minima is not None:
            scales = torch.where(scales == 0, self._type.minima(blocks), scales)
        return scales.reshape(len(blocks), -1).t().contiguous()

    def zeros(self, stored: StoredTensors) -> Tensor:
        """Express the minima in units of codes."""
        blocks = self._blocks(stored)
        scales = self._type.scales(blocks)
        if self._type.minima is None:
            zeros = torch.full_like(scales, self._type.zero)
        else:
            zeros = torch.where(scales == 0, 0.0, -self._type.minima(blocks) / scales)
        return zeros.reshape(len(blocks), -1).t().contiguous()

    def group_of_input(self, stored: StoredTensors) -> Tensor | None:  # noqa: ARG002
        """Return None: GGUF keeps groups in order."""
        return None

    def _blocks(self, stored: StoredTensors) -> Tensor:
        """Give the blocks of every output, [out, blocks, bytes]."""
        rows = stored["blocks"]
        if "rows" in stored:
            rows = rows.index_select(0, stored["rows"])
        return rows.view(len(rows), -1, self._type.num_bytes)


def dequantize(block_type: BlockType, rows: Tensor) -> Tensor:
    """Multiply rows of blocks out: uint8 [rows, bytes] to float32 [rows, weights].

    In the order in which ggml computes, so the same to the last bit.
    """
    blocks = rows.view(len(rows), -1, block_type.num_bytes)
    scales = block_type.scales(blocks).unsqueeze(-1)
    codes = block_type.codes(blocks).view(*scales.shape[:-1], block_type.group_size).float()
    if block_type.minima is None:
        values = codes.sub_(block_type.zero).mul_(scales)
    else:
        values = codes.mul_(scales).add_(block_type.minima(blocks).unsqueeze(-1))
    return values.view(len(rows), -1)


def _half(blocks: Tensor, start: int) -> Tensor:
    """Read the half at a byte: float32 [..., blocks, 1]."""
    return blocks[..., start : start + 2].clone().view(torch.float16).float()


def _fields(numbers: Tensor, width: int, size: int) -> Tensor:
    """Cut every run of `size` bytes into fields, the lowest bits of all of them first.

    numbers: [..., n * size] uint8 to [..., n * 8 / width * size].
    """
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=numbers.device)[:, None]
    runs = numbers.reshape(*numbers.shape[:-1], -1, 1, size)
    fields: Tensor = (runs >> shifts) & (2**width - 1)
    return fields.flatten(-3)


def _bits_in_order(numbers: Tensor) -> Tensor:
    """Spread bytes into single bits, each byte's lowest first."""
    return _fields(numbers, 1, 1)


def _six_bit_scales(blocks: Tensor) -> Tensor:
    """Read Q4_K's and Q5_K's eight scales, packed into 12 bytes with the minima."""
    first, last = blocks[..., 4:8], blocks[..., 12:16]
    return torch.cat((first & 63, (last & 15) | (first >> 2 & 48)), dim=-1)


def _six_bit_minima(blocks: Tensor) -> Tensor:
    middle, last = blocks[..., 8:12], blocks[..., 12:16]
    return torch.cat((middle & 63, (last >> 4) | (middle >> 2 & 48)), dim=-1)


def _q3_scales(blocks: Tensor) -> Tensor:
    """Read Q3_K's sixteen scales: low halves in 8 bytes, two higher bits each in 4."""
    low, high = blocks[..., 96:104], blocks[..., 104:108]
    return (_fields(low, 4, 8) | _fields(high, 2, 4) << 4).float() - 32


def _q2_k() -> BlockType:
    return BlockType(
        "Q2_K",
        codes=lambda b: _fields(b[..., 16:80], 2, 32),
        scales=lambda b: _half(b, 80) * (b[..., :16] & 15),
        minima=lambda b: -_half(b, 82) * (b[..., :16] >> 4),
    )  # fmt: skip


def _q3_k() -> BlockType:
    return BlockType(
        "Q3_K",
        codes=lambda b: _fields(b[..., 32:96], 2, 32) | _fields(b[..., :32], 1, 32) << 2,
        scales=lambda b: _half(b, 108) * _q3_scales(b),
        minima=None, zero=4,
    )  # fmt: skip


def _q4_k() -> BlockType:
    return BlockType(
        "Q4_K",
        codes=lambda b: _fields(b[..., 16:], 4, 32),
        scales=lambda b: _half(b, 0) * _six_bit_scales(b),
        minima=lambda b: -_half(b, 2) * _six_bit_minima(b),
    )  # fmt: skip


def _q5_k() -> BlockType:
    return BlockType(
        "Q5_K",
        codes=lambda b: _fields(b[..., 48:], 4, 32) | _fields(b[..., 16:48], 1, 32) << 4,
        scales=lambda b: _half(b, 0) * _six_bit_scales(b),
        minima=lambda b: -_half(b, 2) * _six_bit_minima(b),
    )  # fmt: skip


def _q6_k() -> BlockType:
    return BlockType(
        "Q6_K",
        codes=lambda b: _fields(b[..., :128], 4, 64) | _fields(b[..., 128:192], 2, 32) << 4,
        scales=lambda b: _half(b, 208) * b[..., 192:208].view(torch.int8),
        minima=None, zero=32,
    )  # fmt: skip


def _simple(name: str, *, codes_at: int, high_at: int | None, zero: int) -> BlockType:
    """One of the older types: 32 weights with one scale, and a minimum where there is no zero."""

    def codes(blocks: Tensor) -> Tensor:
        low = _fields(blocks[..., codes_at:], 4, 16)
        if high_at is None:
            return low
        return low | _bits_in_order(blocks[..., high_at : high_at + 4]) << 4

    minima = None if zero else lambda blocks: _half(blocks, 2)
    return BlockType(name, codes, lambda blocks: _half(blocks, 0), minima, zero)


BLOCK_TYPES = {
    block_type.name: block_type
    for block_type in (
        _q2_k(),
        _q3_k(),
        _q4_k(),
        _q5_k(),
        _q6_k(),
        _simple("Q4_0", codes_at=2, high_at=None, zero=8),
        _simple("Q4_1", codes_at=4, high_at=None, zero=0),
        _simple("Q5_0", codes_at=6, high_at=2, zero=16),
        _simple("Q5_1", codes_at=8, high_at=4, zero=0),
        BlockType(
            "Q8_0",
            codes=lambda blocks: blocks[..., 2:] ^ 128,  # signed there
            scales=lambda blocks: _half(blocks, 0),
            minima=None,
            zero=128,
        ),
    )
}
