"""Products on a GPU, whose input is stored in their order by whoever computes it.

What `JoinedLinears` is on the CPU, but for the gather in front: a kernel more for each product of
a checkpoint with act order. Where one order cannot serve all, the columns are gathered after all,
and counted: no checkpoint whose layers could be joined should come to that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from engine.kernels.launches import count
from engine.kernels.step_kernels import Order
from engine.layers.weights import as_linear_weight, is_same_order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from engine.layers.weights import LinearWeight


class ColumnGather:
    """Brings columns from the order that they lie in to the one that is wanted."""

    def __init__(self, columns: Tensor) -> None:
        """columns: [width] int64, column of the result → column of what is given."""
        self._columns = columns

    def __call__(self, x: Tensor) -> Tensor:
        """x: [rows, columns]; returns a fresh [rows, width]."""
        count("gather_input")
        return x.index_select(1, self._columns)


def gather_between(stored: Tensor | None, wanted: Tensor | None) -> ColumnGather | None:
    """Make what turns one order into the other; None where they are one.

    stored, wanted: [width] int64, place → column of the model's own order; None is that order.
    """
    stored, wanted = _without_identity(stored), _without_identity(wanted)
    if is_same_order(stored, wanted):
        return None
    if stored is None:
        return ColumnGather(wanted) if wanted is not None else None
    places = _inverse(stored)
    return ColumnGather(places if wanted is None else places.index_select(0, wanted))


class OrderedLinears:
    """Linear layers that read the same input, multiplied at once where their weights allow it."""

    def __init__(self, linears: Sequence[nn.Module], *, are_outputs_natural: bool = True) -> None:
        """are_outputs_natural: False leaves outputs as the weights give them."""
        weights = [as_linear_weight(linear) for linear in linears]
        self.sizes = tuple(weight.out_features for weight in weights)
        fused = weights[0].fuse_with(weights[1:]) if len(weights) > 1 else None
        self._weights = weights if fused is None else [fused]
        self._permutation = _without_identity(self._weights[0].input_permutation)
        self._gathers = [
            gather_between(self._permutation, weight.input_permutation) for weight in self._weights
        ]
        # Order in which the input must be stored; None for the model's own.
        self.order = None if self._permutation is None else Order.of(self._permutation)
        given = _joined_outputs(self._weights)
        self._to_natural = gather_between(given, None)
        self._are_outputs_natural = are_outputs_natural
        # Of what a call gives, [out] int64: place → output; None where that is the natural order.
        self.output_permutation = None if are_outputs_natural else given

    @property
    def input_permutation(self) -> Tensor | None:
        """Order in which the input must be stored, [in] int64: place → input; None: natural."""
        return self._permutation

    def __call__(self, x: Tensor) -> Tensor:
        """x: [rows, in], stored in `order`. Returns all outputs side by side, [rows, out]."""
        out = self._multiply(x)
        if self._to_natural is None or not self._are_outputs_natural:
            return out
        return self._to_natural(out)

    def multiply_naturally(self, x: Tensor) -> Tensor:
        """Multiply x [rows, in] in the model's own order: its outputs in theirs, [rows, out]."""
        if self._permutation is not None:
            x = x.index_select(1, self._permutation)
        out = self._multiply(x)
        return out if self._to_natural is None else self._to_natural(out)

    def _multiply(self, x: Tensor) -> Tensor:
        outputs = [
            weight.matmul(x if gather is None else gather(x))
            for weight, gather in zip(self._weights, self._gathers, strict=True)
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


def order_of_halves(outputs: Tensor | None, width: int) -> tuple[bool, Tensor | None]:
    """Say whether both halves of outputs lie in one order each to itself, and in which.

    outputs: [2 * width] int64, place → output; None for the natural order, also in the answer.
    """
    if outputs is None:
        return True, None
    first, second = outputs[:width], outputs[width:]
    return torch.equal(first + width, second), first


def _joined_outputs(weights: Sequence[LinearWeight]) -> Tensor | None:
    """Order of all outputs side by side, place → output; None for the natural one."""
    orders = [_without_identity(weight.output_permutation) for weight in weights]
    given = next((order for order in orders if order is not None), None)
    if given is None:
        return None
    parts: list[Tensor] = []
    first = 0
    for weight, order in zip(weights, orders, strict=True):
        natural = torch.arange(weight.out_features, device=given.device)
        parts.append((natural if order is None else order) + first)
        first += weight.out_features
    return torch.cat(parts)


def _without_identity(permutation: Tensor | None) -> Tensor | None:
    if permutation is None:
        return None
    natural = torch.arange(permutation.shape[0], device=permutation.device)
    return None if torch.equal(permutation, natural) else permutation


def _inverse(permutation: Tensor) -> Tensor:
    inverse = torch.empty_like(permutation)
    inverse[permutation] = torch.arange(permutation.shape[0], device=permutation.device)
    return inverse
