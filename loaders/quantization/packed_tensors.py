"""One linear layer's weights: the tensors as the checkpoint stores them, and what they mean.

`PackedTensors` holds a checkpoint's own tensors and checks them; `GroupedWeight` is the one layout
that every kernel is prepared from, whatever format the weights came in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import torch

from loaders.errors import TensorError
from loaders.quantization.layouts import layout_of
from loaders.quantization.output_cuts import OUTPUTS_OF_WHOLE_WORDS, output_cuts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from loaders.quantization.layouts.protocol import Layout, StoredTensors
    from loaders.quantization.packed_format import PackedFormat

# Unpacking takes several times what it gives. In so many pieces a layer is prepared within two
# bytes a weight beside the stored ones.
_PIECES = 8
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


@dataclass(frozen=True, slots=True, eq=False)
class InputOrder:
    """How a layer's inputs are sorted by group, and what its groups are then."""

    permutation: Tensor | None  # [in] int64: sorted position → input; None for natural order
    group_size: int  # inputs a group; the last one may hold fewer
    stored_groups: Tensor | None = None  # [groups] int64: each one's number in the checkpoint

    def is_same(self, other: InputOrder) -> bool:
        """Whether weights of both orders can be put side by side, by value."""
        if self.group_size != other.group_size:
            return False
        if self.permutation is None or other.permutation is None:
            return self.permutation is other.permutation
        return torch.equal(self.permutation, other.permutation)


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
        pieces = (codes for _, codes in self.codes_by_pieces())
        first = next(pieces)
        value = first.flatten()[0]
        return all(bool((codes == value).all()) for codes in chain((first,), pieces))

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
        group_size = self.in_features
        if self.format.group_size != -1:
            group_size = min(group_size, self.format.group_size)
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
        """Sort the inputs by group, so that act order costs one permutation.

        Unpacked at once: in pieces small layers take twice as long (576x1536 on a CPU 3.1 ms, not
        1.8; 2026-11).
        """
        return grouped_jointly([self], num_pieces=1)

    def input_order(self) -> InputOrder:
        """Say in which order the inputs are sorted by group, and how large the groups are then."""
        groups = self._layout.group_of_input(self.stored)
        if groups is None:
            size = self.format.group_size
            return InputOrder(None, self.in_features if size == -1 else min(size, self.in_features))
        permutation = None
        if not bool((groups[1:] >= groups[:-1]).all()):
            permutation = torch.argsort(groups, stable=True)
            groups = groups[permutation]
        size = self._uniform_group_size(groups)
        return InputOrder(permutation, size, groups[::size])

    def can_stand_beside(self, other: PackedTensors) -> bool:
        """Tell whether both layers' outputs fit into one grouped weight."""
        return self.format.bits == other.format.bits and self.input_order().is_same(
            other.input_order()
        )

    def codes_by_pieces(self, num_pieces: int = _PIECES) -> Iterator[tuple[slice, Tensor]]:
        """Unpack the codes of some outputs after the others: which, and uint8 [in, as many].

        num_pieces: how many at most; fewer where outputs do not fill whole words in each.
        """
        size = self.out_features
        if num_pieces > 1:
            runs = math.ceil(size / num_pieces / OUTPUTS_OF_WHOLE_WORDS)
            size = runs * OUTPUTS_OF_WHOLE_WORDS
        for start in range(0, self.out_features, size):
            stop = min(start + size, self.out_features)
            yield slice(start, stop), self._layout.codes(self._stored_codes(start, stop))

    def _stored_codes(self, start: int, stop: int) -> StoredTensors:
        """Return what codes are read from, of some outputs."""
        if (start, stop) == (0, self.out_features):
            return self.stored
        if "rows" in self.stored:  # which run of blocks each output has
            return {**self.stored, "rows": self.stored["rows"][start:stop]}
        layout = self._layout
        cuts = output_cuts(layout, self.in_features, self.out_features, start, stop)
        return {layout.marker: self.stored[layout.marker][cuts[layout.marker]]}

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


def grouped_jointly(
    parts: Sequence[PackedTensors],
    output_order: Tensor | None = None,
    *,
    num_pieces: int = _PIECES,
) -> GroupedWeight:
    """Put the outputs of layers that `can_stand_beside` each other side by side in one weight.

    output_order: [out] int64, in which order each part's outputs stand, place → output; None for
    the natural one. num_pieces: in how many pieces a part's codes are unpacked to where they stay.
    """
    first, order = parts[0], parts[0].input_order()
    for other in parts[1:]:
        if not first.can_stand_beside(other):
            raise ValueError(
                f"{first.name} and {other.name} differ in bits, group size or act order; such"
                " layers have no common groups"
            )
    # Before the codes, which take more: GGUF's zero points need several float32 for each group.
    scales = torch.cat([_arranged(part.scales(), order, output_order) for part in parts], dim=1)
    zeros = torch.cat([_arranged(part.zeros(), order, output_order) for part in parts], dim=1)
    sizes = [part.out_features for part in parts]
    codes = scales.new_empty(sum(sizes), first.in_features, dtype=torch.uint8)
    place_of = None if output_order is None else torch.argsort(output_order)
    for part, rows in zip(parts, torch.split(codes, sizes), strict=True):
        for outputs, piece in part.codes_by_pieces(num_pieces):
            _store(piece, rows, outputs if place_of is None else place_of[outputs], order)
    return GroupedWeight(
        codes, scales, zeros, first.format.bits, order.group_size, order.permutation
    )


def _arranged(values: Tensor, order: InputOrder, output_order: Tensor | None) -> Tensor:
    """Bring a layer's scales or zero points [groups, out] into the order of a joined weight."""
    if order.stored_groups is not None:
        values = values[order.stored_groups]
    return values if output_order is None else values[:, output_order]


def _store(piece: Tensor, rows: Tensor, places: slice | Tensor, order: InputOrder) -> None:
    """Write codes [in, some outputs] to their rows of [out, in], inputs sorted."""
    if order.permutation is not None:
        piece = piece[order.permutation]
    rows[places] = piece.t()
