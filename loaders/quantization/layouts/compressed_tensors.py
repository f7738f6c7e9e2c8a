"""compressed-tensors' "pack-quantized" layout: codes packed along the inputs, row by row.

Codes are signed and stored with half their range added, so a layer without zero points has the
middle code as its zero point. Zero points, where there are any, are packed along the outputs.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import torch

from loaders.errors import TensorError
from loaders.quantization.layouts.protocol import FLOAT_DTYPES, INT_DTYPES, TensorRule
from loaders.quantization.packing import unpack_stream

if TYPE_CHECKING:
    from torch import Tensor

    from loaders.quantization.layouts.protocol import StoredTensors
    from loaders.quantization.packed_format import PackedFormat


class PackQuantized(StrEnum):
    """What is stored beside the codes; each value is what `tetrad variants --json` calls it."""

    SYMMETRIC = "pack-quantized"  # a scale for each group
    ZERO_POINTS = "pack-quantized, zero points"  # and a zero point
    ONE_SCALE = "pack-quantized, one scale"  # for the whole layer: the strategy "tensor"


class PackQuantizedLayout:
    """Dense streams of codes of 2 to 8 bits; scales by output, then by group."""

    marker = "weight_packed"

    def __init__(self, packed: PackedFormat) -> None:
        self._packed = packed
        self._has_zero_points = packed.checkpoint_format == PackQuantized.ZERO_POINTS
        self._has_one_scale = packed.checkpoint_format == PackQuantized.ONE_SCALE

    def rules(self, in_features: int, out_features: int) -> dict[str, TensorRule]:
        """Say what each tensor must be; weight_g_idx may be absent."""
        bits, groups = self._packed.bits, self._packed.num_groups(in_features)
        if in_features * bits % 32 or out_features * bits % 32:
            raise ValueError(
                f"{in_features} inputs and {out_features} outputs do not fill whole 32-bit words"
                f" at {bits} bits"
            )
        rules = {
            "weight_packed": TensorRule((out_features, in_features * bits // 32), INT_DTYPES),
            "weight_scale": TensorRule(
                (1,) if self._has_one_scale else (out_features, groups), FLOAT_DTYPES
            ),
            "weight_shape": TensorRule((2,), ("I64", "I32"), is_required=False),
            "weight_g_idx": TensorRule((in_features,), INT_DTYPES, is_required=False),
        }
        if self._has_zero_points:
            words = out_features * bits // 32
            rules["weight_zero_point"] = TensorRule((words, groups), INT_DTYPES)
        return rules

    def codes(self, stored: StoredTensors) -> Tensor:
        """Unpack weight_packed."""
        return unpack_stream(stored["weight_packed"].t(), self._packed.bits)

    def scales(self, stored: StoredTensors) -> Tensor:
        """Convert the scales, one for each group and output, to float32.

        Raises TensorError where weight_shape speaks of another matrix.
        """
        self._check_shape(stored)
        scales = stored["weight_scale"].float()
        if self._has_one_scale:
            return scales.expand(1, stored["weight_packed"].shape[0]).contiguous()
        return scales.t().contiguous()

    def zeros(self, stored: StoredTensors) -> Tensor:
        """Unpack the zero points; without any, the middle code."""
        if self._has_zero_points:
            words = stored["weight_zero_point"].contiguous()
            return unpack_stream(words, self._packed.bits).t().float().contiguous()
        return torch.full_like(self.scales(stored), 2 ** (self._packed.bits - 1))

    def _check_shape(self, stored: StoredTensors) -> None:
        if "weight_shape" not in stored:
            return
        out_features, words = stored["weight_packed"].shape
        found, held = (
            stored["weight_shape"].tolist(),
            [out_features, words * 32 // self._packed.bits],
        )
        if found != held:
            raise TensorError(
                f"a layer's weight_shape says {found}, its weight_packed holds {held}; the file is"
                " damaged"
            )

    def group_of_input(self, stored: StoredTensors) -> Tensor | None:
        """Read weight_g_idx; one that was never filled in says nothing.

        Such a one is -1 throughout, or zero beside several groups.
        """
        if "weight_g_idx" not in stored:
            return None
        groups = stored["weight_g_idx"].long()
        if bool((groups == -1).all()):
            return None
        has_one_group = self._has_one_scale or stored["weight_scale"].shape[1] == 1
        return groups if has_one_group or bool(groups.any()) else None
