"""Products with 8-bit weights of one scale an output; a row's bits depend on no other row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

INPUT_MULTIPLE = 32


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """A weight as `torch.ops.aten._weight_int8pack_mm` reads it: (code + offset) * scale."""

    codes: Tensor  # [out, in] int8
    scales: Tensor  # [out] float32
    offsets: Tensor | None = None  # [out] float32; None where all are zero
    bias: Tensor | None = None  # [out] float32

    @property
    def in_features(self) -> int:
        """Number of inputs."""
        return self.codes.shape[1]

    @property
    def out_features(self) -> int:
        """Number of outputs."""
        return self.codes.shape[0]

    def check(self) -> None:
        """Raise ValueError where tensors do not fit together as the kernel reads them."""
        if self.in_features == 0 or self.in_features % INPUT_MULTIPLE:
            raise ValueError(f"{self.in_features} inputs are no multiple of {INPUT_MULTIPLE}")
        for name in ("scales", "offsets", "bias"):
            tensor: Tensor | None = getattr(self, name)
            if tensor is not None and tensor.shape != (self.out_features,):
                raise ValueError(f"{name} of {tuple(tensor.shape)} for {self.out_features} outputs")


def multiply(weight: Int8Weight, x: Tensor) -> Tensor:
    """Multiply x [rows, in], float32 or bfloat16: [rows, out] in its dtype.

    Activations are rounded to bfloat16, sums are float32; the bias is added. Every row comes out
    as it would alone.
    """
    product: Tensor = torch.ops.tetrad.int8_multiply.default(
        x, weight.codes, weight.scales, weight.offsets, weight.bias
    )
    return product
