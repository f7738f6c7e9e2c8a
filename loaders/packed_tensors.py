"""One linear layer's weights: the tensors as the checkpoint stores them, and what they mean.

`PackedTensors` holds a checkpoint's own tensors and checks them; `GroupedWeight` is the one layout
that every kernel is prepared from, whatever format the weights came in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from loaders.errors import TensorError
from loaders.packing import unpack_awq, unpack_gptq_codes, unpack_gptq_zeros

if TYPE_CHECKING:
    from torch import Tensor

    from loaders.quantization import PackedFormat


@dataclass(frozen=True, slots=True)
class GroupedWeight:
    """Codes with a scale and a zero point for every run of `group_size` inputs.

    weight[o, i] = (codes[o, i] - zeros[i // group_size, o]) * scales[i // group_size, o], where i
    counts the inputs in the order of `input_permutation`.
    """

    codes: Tensor  # [out, in] uint8
    scales: Tensor  # [groups, out] float32
    zeros: Tensor  # [groups, out] float32
    bits: int
    group_size: int  # inputs a group; the last one may hold fewer
    input_permutation: Tensor | None  # [in] int64: sorted position → input; None for natural order

    @property
    def in_features(self) -> int:
        """Number of inputs."""
        return self.codes.shape[1]

    @property
    def out_features(self) -> int:
        """Number of outputs."""
        return self.codes.shape[0]

    @property
    def common_group_size(self) -> int:
        """The largest group size that divides this one and the input dimension evenly."""
        return math.gcd(self.group_size, self.in_features)

    def regrouped(self, group_size: int) -> GroupedWeight:
        """Say the same with smaller groups; exact, since scales and zeros are only repeated.

        group_size must divide `common_group_size`.
        """
        if self.common_group_size % group_size:
            raise ValueError(
                f"groups of {self.group_size} cannot be cut into groups of {group_size}"
            )
        first_inputs = torch.arange(0, self.in_features, group_size, device=self.codes.device)
        old_groups = first_inputs // self.group_size
        return GroupedWeight(
            codes=self.codes,
            scales=self.scales[old_groups],
            zeros=self.zeros[old_groups],
            bits=self.bits,
            group_size=group_size,
            input_permutation=self.input_permutation,
        )

    def dequantize(self) -> Tensor:
        """Return the weight as [out, in] float32, its inputs in sorted order."""
        groups = torch.arange(self.in_features, device=self.codes.device) // self.group_size
        weight = self.codes.t() - self.zeros[groups]
        return (weight * self.scales[groups]).t().contiguous()


@dataclass(frozen=True, slots=True)
class PackedTensors:
    """One layer's tensors as they stand in a GPTQ or AWQ checkpoint."""

    name: str  # the module's name, for messages
    format: PackedFormat
    in_features: int
    out_features: int
    qweight: Tensor  # GPTQ [in*bits/32, out] int32, AWQ [in, out/8] int32
    qzeros: Tensor  # [groups, out*bits/32] int32
    scales: Tensor  # [groups, out] float
    g_idx: (
        Tensor | None
    )  # [in] int32, the group of each input; None means in order (always for AWQ)

    def check_values(self) -> None:
        """Raise TensorError where a group index or a scale would give rubbish."""
        if not bool(torch.isfinite(self.scales).all()):
            raise TensorError(
                f"{self.name}.scales holds NaN or infinite values; the file is damaged"
            )
        if not bool((self.scales != 0).any()):
            raise TensorError(f"{self.name}.scales is all zero; the file is damaged")
        if self.g_idx is None:
            return
        low, high = int(self.g_idx.min()), int(self.g_idx.max())
        num_groups = self.scales.shape[0]
        if low < 0 or high >= num_groups:
            raise TensorError(
                f"{self.name}.g_idx holds groups {low} to {high}, there are {num_groups} (0 to"
                f" {num_groups - 1})"
            )

    def codes(self) -> Tensor:
        """Unpack the codes: uint8 [in, out] in the checkpoint's input order."""
        if self.format.quant_method == "awq":
            return unpack_awq(self.qweight)
        return unpack_gptq_codes(self.qweight, self.format.bits)

    def zeros(self) -> Tensor:
        """Unpack the true zero points: uint8 [groups, out]."""
        if self.format.checkpoint_format == "gemm":
            return unpack_awq(self.qzeros)
        return unpack_gptq_zeros(
            self.qzeros, self.format.bits, checkpoint_format=self.format.checkpoint_format
        )

    def group_of_input(self) -> Tensor:
        """Return the group of each input, [in] int64, in the checkpoint's input order."""
        if self.g_idx is not None:
            return self.g_idx.long()
        group_size = self.in_features if self.format.group_size == -1 else self.format.group_size
        return torch.arange(self.in_features, device=self.qweight.device) // group_size

    def dequantize(self) -> Tensor:
        """Return the weight as [out, in] float32 in the checkpoint's input order.

        Formula of AutoGPTQ and AutoAWQ: (code - zero point) * scale.
        """
        groups = self.group_of_input()
        weight = self.codes().float() - self.zeros().float()[groups]
        return (weight * self.scales.float()[groups]).t().contiguous()

    def to_grouped(self) -> GroupedWeight:
        """Sort the inputs by group, so that act order costs one permutation."""
        groups = self.group_of_input()
        codes, permutation = self.codes(), None
        if not bool((groups[1:] >= groups[:-1]).all()):
            permutation = torch.argsort(groups, stable=True)
            groups, codes = groups[permutation], codes[permutation]
        group_size = self._uniform_group_size(groups)
        group_starts = groups[::group_size]
        return GroupedWeight(
            codes=codes.t().contiguous(),
            scales=self.scales.float()[group_starts],
            zeros=self.zeros().float()[group_starts],
            bits=self.format.bits,
            group_size=group_size,
            input_permutation=permutation,
        )

    def _uniform_group_size(self, sorted_groups: Tensor) -> int:
        """Return the largest group size whose borders include every change of group."""
        changes: list[int] = (
            torch.nonzero(sorted_groups[1:] != sorted_groups[:-1]).flatten() + 1
        ).tolist()
        if not changes:
            return self.in_features
        nominal: int = changes[0]
        if changes == list(range(nominal, self.in_features, nominal)):
            return nominal
        return math.gcd(*changes, self.in_features)
