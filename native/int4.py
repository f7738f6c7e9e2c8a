"""Products with weights in PyTorch's int4 blocks, by rows whose bits depend on no other row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from native.library import allows_tiles, read_machine

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_OUTPUTS = 64
GROUP_MULTIPLE = 32


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """A weight as `torch.ops.aten._convert_weight_to_int4pack_for_cpu` packs it, in blocks of 64.

    One plane holds codes of 4 bits: weight = (code - 8) * scale + minimum. Two hold the upper and
    the lower halves of 8 bits: weight = (code - 136) * scale + minimum, by the lower halves' scales
    and minima. Inputs come in groups of one size, which is a multiple of 32.
    """

    packed: Tensor  # [padded out, in / 2 * planes] uint8
    scales_and_minima: Tensor  # [groups * planes, padded out, 2] bfloat16
    out_features: int
    num_planes: int = 1
    bias: Tensor | None = None  # [out] float32
    input_permutation: Tensor | None = None  # [in] int64: place → input, what rows are to be put in

    @property
    def in_features(self) -> int:
        """Number of inputs."""
        return self.packed.shape[1] * 2 // self.num_planes

    @property
    def num_groups(self) -> int:
        """Number of groups of inputs."""
        return self.scales_and_minima.shape[0] // self.num_planes

    def check(self) -> None:
        """Raise ValueError where tensors do not fit together as the kernels read them."""
        if self.num_planes not in (1, 2):
            raise ValueError(f"a weight has one plane or two, not {self.num_planes}")
        padded, num_inputs, num_groups = self.packed.shape[0], self.in_features, self.num_groups
        has_blocks = padded % BLOCK_OUTPUTS == 0 and 0 < self.out_features <= padded
        has_scales = self.scales_and_minima.shape == (num_groups * self.num_planes, padded, 2)
        if num_groups == 0 or num_inputs == 0 or not has_blocks or not has_scales:
            raise ValueError(
                f"packed {tuple(self.packed.shape)}, scales and minima"
                f" {tuple(self.scales_and_minima.shape)} and {self.out_features} outputs in"
                f" {self.num_planes} planes do not fit together"
            )
        if num_inputs % num_groups or num_inputs // num_groups % GROUP_MULTIPLE:
            raise ValueError(
                f"{num_inputs} inputs in {num_groups} groups: groups must be of one size, a"
                f" multiple of {GROUP_MULTIPLE}"
            )
        if self.bias is not None and self.bias.shape != (self.out_features,):
            raise ValueError(f"a bias of shape {tuple(self.bias.shape)} for {self.out_features}")
        order = self.input_permutation
        if order is None:
            return
        if (
            order.shape != (num_inputs,)
            or not 0 <= int(order.min()) <= int(order.max()) < num_inputs
        ):
            raise ValueError(f"the order of inputs is none of {num_inputs} inputs")


def multiply(weight: Int4Weight, x: Tensor) -> Tensor:
    """Multiply x [rows, in], float32 or bfloat16, already permuted: [rows, out] in its dtype.

    Activations are rounded to bfloat16, sums are float32; the bias is added. Every row comes out
    as it would alone.
    """
    product: Tensor = torch.ops.tetrad.int4_multiply.default(
        x,
        weight.packed,
        weight.scales_and_minima,
        weight.num_planes,
        weight.out_features,
        weight.bias,
    )
    return product


def may_use_tiles() -> bool:
    """Whether the CPU has tile registers (AMX) for bfloat16, and the system gives them to us."""
    if not allows_tiles(read_machine()):
        return False
    return bool(torch.ops.tetrad.may_use_tiles.default(torch.empty(0)))


def multiply_many(weight: Int4Weight, x: Tensor, *, has_tiles: bool = False) -> Tensor:
    """Multiply as `multiply` does, but by weights that are rounded to bfloat16 first.

    They are unpacked once for all rows, a block of outputs at a time, which pays from some 24 rows
    on. Every row comes out as it would alone by this way. has_tiles: by tile registers, which only
    a process that `may_use_tiles` has.
    """
    product: Tensor = torch.ops.tetrad.int4_multiply_many.default(
        x,
        weight.packed,
        weight.scales_and_minima,
        weight.num_planes,
        weight.out_features,
        weight.bias,
        has_tiles,
    )
    return product


def unpack(weight: Int4Weight) -> Tensor:
    """Give the weight as bfloat16 [in, padded out]: levels times scale plus minimum, in float32."""
    unpacked: Tensor = torch.ops.tetrad.int4_unpack.default(
        weight.packed, weight.scales_and_minima, weight.num_planes
    )
    return unpacked
