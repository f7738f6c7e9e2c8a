"""One layer's share of a kernel that several layers were joined in.

Whoever knows of joined layers multiplies by the whole; for all others (Transformers' forward, the
self-test, the live check) each layer stays usable by itself, its outputs in their natural order,
at the cost of multiplying by the whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from loaders.model.kernels.protocol import Kernel


class JoinedKernel:
    """A kernel that gives several layers' outputs side by side."""

    def __init__(self, kernel: Kernel, sizes: Sequence[int], output_order: Tensor | None) -> None:
        """sizes: outputs of each layer. output_order: of each one's own, place → output."""
        self.kernel, self.sizes, self.output_order = kernel, tuple(sizes), output_order
        self.places = None if output_order is None else torch.argsort(output_order)

    @property
    def output_permutation(self) -> Tensor | None:
        """Order of all outputs, counted over the layers side by side: place → output, int64."""
        if self.output_order is None:
            return None
        starts = range(0, sum(self.sizes), len(self.output_order))
        return torch.cat([self.output_order + start for start in starts])

    def slices(self) -> list[OutputSlice]:
        """Return each layer's share."""
        return [OutputSlice(self, index) for index in range(len(self.sizes))]


class OutputSlice:
    """A kernel of one layer that multiplies by all those it was joined with."""

    def __init__(self, joined: JoinedKernel, index: int) -> None:
        self._joined, self._index = joined, index
        self._start, self._size = sum(joined.sizes[:index]), joined.sizes[index]

    @property
    def num_invariant_rows(self) -> int | None:
        """The joined kernel's."""
        return self._joined.kernel.num_invariant_rows

    @property
    def unit_roundoff(self) -> float:
        """The joined kernel's."""
        return self._joined.kernel.unit_roundoff

    @property
    def input_permutation(self) -> Tensor | None:
        """The joined kernel's."""
        return self._joined.kernel.input_permutation

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply x [rows, in] by all weights; give this layer's outputs, [rows, out]."""
        return self._own(self._joined.kernel(x), dim=1)

    def dequantize(self) -> Tensor:
        """Return this layer's weight, [out, in] float32, in the joined kernel's input order."""
        return self._own(self._joined.kernel.dequantize(), dim=0)

    def fuse(self, others: Sequence[Kernel]) -> Kernel | None:  # noqa: ARG002
        """Never: what can be joined was joined before it was packed; see `whole_of`."""
        return None

    def _own(self, values: Tensor, *, dim: int) -> Tensor:
        mine, places = values.narrow(dim, self._start, self._size), self._joined.places
        # A copy in both cases: callers may overwrite it, and expect whole rows.
        if places is not None:
            return mine.index_select(dim, places)
        return mine.clone(memory_format=torch.contiguous_format)


def whole_of(kernels: Sequence[Kernel]) -> JoinedKernel | None:
    """Return the joined kernel of which these are all the layers, in order; else None."""
    first = kernels[0]
    if not isinstance(first, OutputSlice):
        return None
    joined = first._joined
    shares = [
        kernel._index
        for kernel in kernels
        if isinstance(kernel, OutputSlice) and kernel._joined is joined
    ]
    is_whole = len(shares) == len(kernels) and shares == list(range(len(joined.sizes)))
    return joined if is_whole else None
