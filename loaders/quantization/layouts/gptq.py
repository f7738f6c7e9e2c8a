"""GPTQ's layout: codes packed along the inputs, zero points along the outputs, groups by g_idx."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loaders.quantization.layouts.protocol import FLOAT_DTYPES, INT_DTYPES, TensorRule
from loaders.quantization.packing import unpack_gptq_codes, unpack_gptq_zeros

if TYPE_CHECKING:
    from torch import Tensor

    from loaders.quantization.layouts.protocol import StoredTensors
    from loaders.quantization.packed_format import PackedFormat
    from loaders.quantization.packing import CheckpointFormat


class GptqLayout:
    """AutoGPTQ's and GPTQModel's packing, in either version of its zero points."""

    marker = "qweight"

    def __init__(self, packed: PackedFormat) -> None:
        self._packed = packed
        self._checkpoint_format: CheckpointFormat = (
            "gptq_v2" if packed.checkpoint_format == "gptq_v2" else "gptq"
        )

    def rules(self, in_features: int, out_features: int) -> dict[str, TensorRule]:
        """Say what each tensor must be; g_idx may be absent."""
        bits, groups = self._packed.bits, self._packed.num_groups(in_features)
        if in_features * bits % 32 or out_features * bits % 32:
            raise ValueError(
                f"{in_features} inputs and {out_features} outputs do not fill whole 32-bit words"
                f" at {bits} bits"
            )
        return {
            "qweight": TensorRule((in_features * bits // 32, out_features), INT_DTYPES),
            "qzeros": TensorRule((groups, out_features * bits // 32), INT_DTYPES),
            "scales": TensorRule((groups, out_features), FLOAT_DTYPES),
            "g_idx": TensorRule((in_features,), INT_DTYPES, is_required=False),
        }

    def codes(self, stored: StoredTensors) -> Tensor:
        """Unpack qweight."""
        return unpack_gptq_codes(stored["qweight"], self._packed.bits)

    def scales(self, stored: StoredTensors) -> Tensor:
        """Convert the scales to float32."""
        return stored["scales"].float()

    def zeros(self, stored: StoredTensors) -> Tensor:
        """Unpack qzeros; version 1 wraps where it stores minus one."""
        zeros = unpack_gptq_zeros(
            stored["qzeros"], self._packed.bits, checkpoint_format=self._checkpoint_format
        )
        return zeros.float()

    def group_of_input(self, stored: StoredTensors) -> Tensor | None:
        """Read g_idx; all zero beside several groups it was never filled in and says nothing."""
        if "g_idx" not in stored:
            return None
        groups = stored["g_idx"].long()
        return groups if len(stored["scales"]) == 1 or bool(groups.any()) else None
