"""AWQ's layout of its GEMM version: codes and zero points packed along the outputs, shuffled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loaders.layouts.protocol import FLOAT_DTYPES, INT_DTYPES, TensorRule
from loaders.packing import unpack_awq

if TYPE_CHECKING:
    from torch import Tensor

    from loaders.layouts.protocol import StoredTensors
    from loaders.quantization import PackedFormat


class AwqLayout:
    """AutoAWQ's GEMM packing; groups are always in order."""

    marker = "qweight"

    def rules(
        self, packed: PackedFormat, in_features: int, out_features: int
    ) -> dict[str, TensorRule]:
        """Say what each tensor must be."""
        if out_features * packed.bits % 32:
            raise ValueError(
                f"{out_features} outputs do not fill whole 32-bit words at {packed.bits} bits"
            )
        words, groups = out_features * packed.bits // 32, packed.num_groups(in_features)
        return {
            "qweight": TensorRule((in_features, words), INT_DTYPES),
            "qzeros": TensorRule((groups, words), INT_DTYPES),
            "scales": TensorRule((groups, out_features), FLOAT_DTYPES),
        }

    def codes(self, packed: PackedFormat, stored: StoredTensors) -> Tensor:  # noqa: ARG002
        """Unpack qweight."""
        return unpack_awq(stored["qweight"])

    def scales(self, packed: PackedFormat, stored: StoredTensors) -> Tensor:  # noqa: ARG002
        """Widen the scales."""
        return stored["scales"].float()

    def zeros(self, packed: PackedFormat, stored: StoredTensors) -> Tensor:  # noqa: ARG002
        """Unpack qzeros."""
        return unpack_awq(stored["qzeros"]).float()

    def group_of_input(self, stored: StoredTensors) -> Tensor | None:  # noqa: ARG002
        """In order."""
        return None
