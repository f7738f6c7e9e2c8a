"""AWQ's layouts: GEMM packs along the outputs, shuffled; GEMV and GEMV-fast along the inputs.

The GEMV versions store more groups than there are, so that their kernels may read whole words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from loaders.errors import TensorError
from loaders.quantization.layouts.protocol import FLOAT_DTYPES, INT_DTYPES, TensorRule
from loaders.quantization.packing import unpack_awq, unpack_gemv, unpack_gemv_fast

if TYPE_CHECKING:
    from torch import Tensor

    from loaders.quantization.layouts.protocol import StoredTensors
    from loaders.quantization.packed_format import PackedFormat


class _AwqVersion:
    """What the versions have in common."""

    marker = "qweight"

    def __init__(self, packed: PackedFormat) -> None:
        self._packed = packed

    def group_of_input(self, stored: StoredTensors) -> Tensor | None:  # noqa: ARG002
        """Return None: AWQ keeps groups in order."""
        return None


class AwqLayout(_AwqVersion):
    """AutoAWQ's GEMM packing; groups are always in order."""

    def rules(self, in_features: int, out_features: int) -> dict[str, TensorRule]:
        """Say what each tensor must be."""
        if out_features * self._packed.bits % 32:
            raise ValueError(
                f"{out_features} outputs do not fill whole 32-bit words at {self._packed.bits} bits"
            )
        words, groups = out_features * self._packed.bits // 32, self._packed.num_groups(in_features)
        return {
            "qweight": TensorRule((in_features, words), INT_DTYPES),
            "qzeros": TensorRule((groups, words), INT_DTYPES),
            "scales": TensorRule((groups, out_features), FLOAT_DTYPES),
        }

    def codes(self, stored: StoredTensors) -> Tensor:
        """Unpack qweight."""
        return unpack_awq(stored["qweight"])

    def scales(self, stored: StoredTensors) -> Tensor:
        """Convert the scales to float32."""
        return stored["scales"].float()

    def zeros(self, stored: StoredTensors) -> Tensor:
        """Unpack qzeros."""
        return unpack_awq(stored["qzeros"]).float()


class GemvLayout(_AwqVersion):
    """AutoAWQ's GEMV packing: everything by output, then along the inputs in order."""

    def rules(self, in_features: int, out_features: int) -> dict[str, TensorRule]:
        """Say what each tensor must be."""
        words = zero_words(self._packed, in_features)
        if in_features % 8:
            raise ValueError(f"{in_features} inputs do not fill whole 32-bit words at 4 bits")
        return {
            "qweight": TensorRule((out_features, in_features // 8), INT_DTYPES),
            "qzeros": TensorRule((out_features, words), INT_DTYPES),
            "scales": TensorRule((out_features, words * 8), FLOAT_DTYPES),
        }

    def codes(self, stored: StoredTensors) -> Tensor:
        """Unpack qweight."""
        return unpack_gemv(stored["qweight"]).t().contiguous()

    def scales(self, stored: StoredTensors) -> Tensor:
        """Convert the scales of the groups that there are to float32."""
        num_groups = self._packed.num_groups(stored["qweight"].shape[1] * 8)
        return _without_surplus(stored["scales"].t(), num_groups)

    def zeros(self, stored: StoredTensors) -> Tensor:
        """Unpack the zero points of the groups that there are."""
        num_groups = self._packed.num_groups(stored["qweight"].shape[1] * 8)
        return unpack_gemv(stored["qzeros"])[:, :num_groups].t().float()


class GemvFastLayout(_AwqVersion):
    """AutoAWQ's GEMV-fast packing: int16 words of four outputs; zero points times scale, negated.

    Its zero points are stored as half-precision offsets, which rarely divide by the scale evenly,
    so they are read as the fractions that they are.
    """

    def rules(self, in_features: int, out_features: int) -> dict[str, TensorRule]:
        """Say what each tensor must be."""
        groups = zero_words(self._packed, in_features) * 8
        if in_features % 64 or out_features % 4:
            raise ValueError(
                f"{in_features} inputs and {out_features} outputs cannot be stored: GEMV-fast takes"
                " multiples of 64 and of 4"
            )
        return {
            "qweight": TensorRule((out_features // 4, in_features), ("I16",)),
            "qzeros": TensorRule((groups, out_features), FLOAT_DTYPES),
            "scales": TensorRule((groups, out_features), FLOAT_DTYPES),
        }

    def codes(self, stored: StoredTensors) -> Tensor:
        """Unpack qweight."""
        return unpack_gemv_fast(stored["qweight"]).t().contiguous()

    def scales(self, stored: StoredTensors) -> Tensor:
        """Convert the scales of the groups that there are to float32."""
        return _without_surplus(stored["scales"], self._num_groups(stored))

    def zeros(self, stored: StoredTensors) -> Tensor:
        """Divide the offsets by the scales; a group without scale has no zero point to find."""
        scales = self.scales(stored)
        zeros = -stored["qzeros"][: self._num_groups(stored)].float() / scales
        return torch.where(scales == 0, torch.zeros_like(zeros), zeros)

    def _num_groups(self, stored: StoredTensors) -> int:
        return self._packed.num_groups(stored["qweight"].shape[1])


def _without_surplus(scales: Tensor, num_groups: int) -> Tensor:
    """Return the scales of the groups that there are: float32 [groups, out].

    scales: [stored groups, out]. Raises TensorError where a group beyond them has a scale, or one
    of them has none: then there are more groups or fewer, and the group size is another.
    """
    has_scale = (scales != 0).any(dim=1)
    num_filled = int(has_scale.sum())
    if num_filled != num_groups or bool(has_scale[num_groups:].any()):
        raise TensorError(
            f"a layer's scales are filled in for {num_filled} groups, the group size of the"
            f" settings makes {num_groups}; correct the settings"
        )
    return scales[:num_groups].float()


def zero_words(packed: PackedFormat, in_features: int) -> int:
    """Count the words of eight zero points that a GEMV version stores for each output.

    Smaller groups are padded to more whole words: AutoAWQ's kernels read that many at a time.
    Raises ValueError for what AutoAWQ cannot write.
    """
    group_size = in_features if packed.group_size == -1 else packed.group_size
    multiple = {32: 4, 64: 2}.get(group_size, 1)
    if in_features % group_size or (group_size < 128 and multiple == 1):
        raise ValueError(
            f"{in_features} inputs in groups of {group_size} cannot be stored: AWQ's GEMV versions"
            " take whole groups of 32, 64, or 128 and more"
        )
    words = -(-in_features // group_size // 8)
    return -(-words // multiple) * multiple
