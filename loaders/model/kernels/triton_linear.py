"""Packed layers on CUDA: few rows in one Triton kernel, many by dequantised pieces and cuBLAS.

Takes any grouped weight of 2 to 8 bits; the files' codes, scales and zero points are kept as they
are. Triton is imported with the first layer, so that machines without it run everything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from loaders.model.kernels.protocol import BFLOAT16_ROUNDOFF, FLOAT16_ROUNDOFF, FLOAT32_ROUNDOFF
from loaders.quantization import kernel_rules
from loaders.quantization.plane_layout import (
    MAX_FEW_ROWS,
    WIDEST_ITEM,
    Split,
    num_locks,
    piece_outputs,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from loaders.model.kernels.protocol import Kernel, LayerShape
    from loaders.model.kernels.triton.pack import PackedPlanes
    from loaders.quantization.packed_tensors import GroupedWeight, PackedTensors

_ROUNDOFFS = {
    torch.float16: FLOAT16_ROUNDOFF,
    torch.bfloat16: BFLOAT16_ROUNDOFF,
    torch.float32: FLOAT32_ROUNDOFF,
}


class TritonKernel:
    """One weight, or several joined along their outputs, in planes of bytes."""

    def __init__(
        self,
        planes: PackedPlanes,
        *,
        bias: Tensor | None,
        input_permutation: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        """bias: [out] float32. dtype: of activations, mostly; others may come, too."""
        from loaders.model.kernels.triton import dequantize, few_rows, workspace

        self._few_rows, self._dequantize = few_rows, dequantize
        self.num_invariant_rows = few_rows.NUM_INVARIANT_ROWS
        self._planes, self._bias, self._dtype = planes, bias, dtype
        self.input_permutation = input_permutation
        device = planes.low.device
        self._split = Split.of(
            planes.num_blocks, planes.padded_out, workspace.num_multiprocessors(device)
        )
        self._workspace = workspace.workspace_of(device)
        outputs = piece_outputs(planes.in_features, planes.padded_out, WIDEST_ITEM)
        self._workspace.reserve(
            num_partials=self._split.num_partials(planes.padded_out),
            num_locks=num_locks(planes.padded_out),
            weight_bytes=planes.in_features * outputs * WIDEST_ITEM,
        )

    @property
    def unit_roundoff(self) -> float:
        """That of the activations' dtype, which weights are rounded to, or of rounded scales."""
        own = _ROUNDOFFS[self._dtype]
        return own if self._planes.is_exact else max(own, FLOAT16_ROUNDOFF)

    @property
    def num_bytes(self) -> int:
        """What it keeps, beside the bias and what all layers share."""
        order = self.input_permutation
        kept = sum(tensor.nbytes for tensor in self._planes.tensors)
        return kept if order is None else kept + order.nbytes

    @property
    def shared_bytes(self) -> int:
        """What all layers of the device share, as far as they have been prepared."""
        return self._workspace.num_bytes

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply x [rows, in], already permuted → [rows, out] in x's dtype, with the bias."""
        return self._multiply(x, self._bias)

    def _multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if x.shape[0] == 0:
            return x.new_empty(0, self._planes.out_features)
        if x.shape[0] > MAX_FEW_ROWS:
            return self._dequantize.multiply(x, self._planes, bias, self._workspace)
        return self._few_rows.multiply(x, self._planes, bias, self._split, self._workspace)

    def dequantize(self) -> Tensor:
        """Return the weight as products with unit rows show it, [out, in] float32."""
        planes = self._planes
        weight = torch.empty(
            planes.out_features, planes.in_features, dtype=torch.float32, device=planes.low.device
        )
        for start in range(0, planes.in_features, MAX_FEW_ROWS):
            stop = min(start + MAX_FEW_ROWS, planes.in_features)
            unit = weight.new_zeros(stop - start, planes.in_features, dtype=self._dtype)
            unit[:, start:stop].fill_diagonal_(1)
            weight[:, start:stop] = self._multiply(unit, None).t()
        return weight

    def fuse(self, others: Sequence[Kernel]) -> Kernel | None:  # noqa: ARG002
        """Never: layers are joined before they are packed, which takes no second copy."""
        return None


class TritonBackend:
    """Runs every packed layer on CUDA, from compute capability 8.0 on."""

    name = "triton"

    def refusal(self, shape: LayerShape) -> str | None:
        """Refuse CPUs, older GPUs, and where Triton is missing."""
        return kernel_rules.refusal(self.name, shape.size, shape.facts)

    def prepare(self, packed: PackedTensors) -> Kernel:
        """Sort and pack one layer, whose bias is added by others."""
        return self.prepare_grouped(packed.to_grouped(), None, torch.float16)

    def prepare_grouped(
        self, weight: GroupedWeight, bias: Tensor | None, dtype: torch.dtype
    ) -> Kernel:
        """Pack one weight, or several that were joined along their outputs."""
        from loaders.model.kernels.triton.pack import pack

        return TritonKernel(
            pack(weight),
            bias=None if bias is None else bias.float().contiguous(),
            input_permutation=weight.input_permutation,
            dtype=dtype,
        )
