"""One linear layer's weights: the tensors as the checkpoint stores them, and what they mean.

`PackedTensors` holds a checkpoint's own tensors and checks them; `GroupedWeight` is the one layout
that every kernel is prepared from, whatever format the weights came in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from loaders.errors import TensorError
from loaders.quantization.layouts import layout_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from loaders.quantization.layouts.protocol import Layout, StoredTensors
    from loaders.quantization.packed_format import PackedFormat

_SAMPLE_WORDS = 4096  # enough to know that codes vary, without unpacking them


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
    """One layer's tensors as they stand in a checkpoint of any format."""

    name: str  # the module's name, for messages
    format: PackedFormat
    in_features: int
    out_features: int
    stored: StoredTensors  # by the last part of their names

    @property
    def _layout(self) -> Layout:
        return layout_of(self.format)

    def check_values(self) -> None:
        """Raise TensorError where a group index or a scale would give rubbish."""
        try:
            scales, zeros = self.scales(), self.zeros()
        except TensorError as error:
            raise TensorError(f"{self.name}: {error}") from error
        for key, values, what in (("scales", scales, "values"), ("zeros", zeros, "zero points")):
            if not bool(torch.isfinite(values).all()):
                raise TensorError(
                    f"{self.name}.{key} holds NaN or infinite {what}; the file is damaged"
                )
        if not bool((scales != 0).any()):
            raise TensorError(f"{self.name}.scales is all zero; the file is damaged")
        groups = self._layout.group_of_input(self.stored)
        if groups is None:
            return
        low, high, num_groups = int(groups.min()), int(groups.max()), len(scales)
        if low < 0 or high >= num_groups:
            raise TensorError(
                f"{self.name}.g_idx holds groups {low} to {high}, there are {num_groups} (0 to"
                f" {num_groups - 1})"
            )
        self._check_group_sizes(groups, num_groups)

    def _check_group_sizes(self, groups: Tensor, num_groups: int) -> None:
        """Raise TensorError unless every group has its inputs; the last may have fewer."""
        size = self.in_features if self.format.group_size == -1 else self.format.group_size
        found = torch.bincount(groups, minlength=num_groups).tolist()
        for group, count in enumerate(found):
            expected = min(size, self.in_features - group * size)
            if count != expected:
                raise TensorError(
                    f"{self.name}.g_idx puts {count} of {self.in_features} inputs into group"
                    f" {group} of {num_groups}, expected {expected} for group size"
                    f" {self.format.group_size}; the file is damaged, or the settings are another"
                    " revision's"
                )

    def is_constant(self) -> bool:
        """Tell whether every code is one and the same, as where a file was never filled in."""
        words = self.stored[self._layout.marker].flatten()[:_SAMPLE_WORDS]
        # A repeated code of 3, 5, 6 or 7 bits fills as many different words as it has bits.
        if len(torch.unique(words)) > self.format.bits:
            return False
        codes = self.codes()
        return bool((codes == codes.flatten()[0]).all())

    def codes(self) -> Tensor:
        """Unpack the codes: uint8 [in, out] in the checkpoint's input order."""
        return self._layout.codes(self.stored)

    def scales(self) -> Tensor:
        """Return the scales: float32 [groups, out]."""
        return self._layout.scales(self.stored)

    def zeros(self) -> Tensor:
        """Return the true zero points, in units of codes: float32 [groups, out]."""
        return self._layout.zeros(self.stored)

    def group_of_input(self) -> Tensor:
        """Return the group of each input, [in] int64, in the checkpoint's input order."""
        groups = self._layout.group_of_input(self.stored)
        if groups is not None:
            return groups
        group_size = self.in_features if self.format.group_size == -1 else self.format.group_size
        device = next(iter(self.stored.values())).device
        return torch.arange(self.in_features, device=device) // group_size

    def dequantize(self) -> Tensor:
        """Return the weight as [out, in] float32 in the checkpoint's input order.

        Formula of AutoGPTQ and AutoAWQ: (code - zero point) * scale. Its memory may be laid out by
        input, as most formats' codes are: laying it out anew takes longer than all the rest.
        """
        levels, scales, zeros = self.codes().float(), self.scales(), self.zeros()
        groups = self._layout.group_of_input(self.stored)
        if groups is None and self._has_whole_groups():
            # In order and of one size: nothing is looked up, which would copy both for each weight.
            grouped = levels.view(len(scales), -1, self.out_features)
            grouped.sub_(zeros.unsqueeze(1)).mul_(scales.unsqueeze(1))
        else:
            groups = self.group_of_input()
            levels.sub_(zeros.index_select(0, groups)).mul_(scales.index_select(0, groups))
        return levels.t()

    def _has_whole_groups(self) -> bool:
        return self.format.group_size == -1 or self.in_features % self.format.group_size == 0

    def pieces(self, max_outputs: int) -> Iterator[PackedTensors]:
        """Cut along the outputs where every one has a row of its own (GGUF's), else give it whole.

        For large heads: unpacked at once, one of 128 000 x 4096 takes 2 GB a copy.
        """
        if self.stored.keys() != {"blocks"} or self.out_features <= max_outputs:
            yield self
            return
        for rows in torch.split(self.stored["blocks"], max_outputs):
            yield replace(self, out_features=len(rows), stored={"blocks": rows})

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
            scales=self.scales()[group_starts],
            zeros=self.zeros()[group_starts],
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
