"""How the engine sees a linear layer's weight, whatever it is packed as.

The engine's own layers go through `LinearWeight` only. Packed layers made elsewhere satisfy it by
having its names; plain `nn.Linear` layers are wrapped here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import torch
from torch import nn
from torch.nn import functional

from engine.errors import UnsupportedArchitectureError
from engine.layers.alike import multiply_in_any_way, multiply_pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor


@dataclass(frozen=True, slots=True)
class LinearsInUse:
    """Some of a model's linear layers, as the engine multiplies by them now."""

    names: tuple[str, ...]  # as the model named them when it was taken over
    sizes: tuple[int, ...]  # outputs of each; they stand side by side in this order
    multiply: Callable[[Tensor], Tensor]  # x [rows, in] in the model's order: [rows, all outputs]
    # The same by the way that pieces of prompts take; None where they take no way of their own.
    multiply_pieces: Callable[[Tensor], Tensor] | None = None


@runtime_checkable
class LinearWeight(Protocol):
    """A weight [out, in] that rows of activations can be multiplied by."""

    in_features: int
    out_features: int

    @property
    def num_invariant_rows(self) -> int | None:
        """Up to how many rows `matmul` gives each as it would alone, to the last bit; None: any."""

    @property
    def input_permutation(self) -> Tensor | None:
        """Order in which `matmul` wants its inputs, [in] int64; None for the model's own."""

    @property
    def output_permutation(self) -> Tensor | None:
        """Order in which `matmul` gives its outputs, [out] int64: place → output; None: natural."""

    def matmul(self, x: Tensor) -> Tensor:
        """Multiply x [rows, in], any float dtype, its columns already permuted, and add the bias.

        Returns [rows, out] in x's dtype; a fresh tensor, which the caller may overwrite.
        """

    def fuse_with(self, others: Sequence[LinearWeight]) -> LinearWeight | None:
        """Give one weight that puts this one's and the others' outputs side by side, or None."""


class DenseWeight:
    """An ordinary weight matrix; multiplies in its own dtype."""

    input_permutation = None
    output_permutation = None
    num_invariant_rows = 1  # products of matrices sum in an order that depends on their sizes

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """weight: [out, in], bias: [out], one dtype and device."""
        self.out_features, self.in_features = weight.shape
        self._weight = weight
        self._bias = bias

    def matmul(self, x: Tensor) -> Tensor:
        """Multiply x [rows, in] and add the bias: [rows, out]."""
        return functional.linear(x.to(self._weight.dtype), self._weight, self._bias).to(x.dtype)

    def fuse_with(self, others: Sequence[LinearWeight]) -> DenseWeight | None:
        """Put the matrices side by side; None unless all are dense and of one dtype and device."""
        siblings = [other for other in others if isinstance(other, DenseWeight)]
        if len(siblings) != len(others) or not all(map(self._matches, siblings)):
            return None
        parts = [self, *siblings]
        bias = None
        if any(part._bias is not None for part in parts):
            bias = torch.cat([part._bias_or_zeros() for part in parts])
        return DenseWeight(torch.cat([part._weight for part in parts]), bias)

    def _matches(self, other: DenseWeight) -> bool:
        mine, theirs = self._weight, other._weight
        return (mine.dtype, mine.device) == (theirs.dtype, theirs.device)

    def _bias_or_zeros(self) -> Tensor:
        return self._weight.new_zeros(self.out_features) if self._bias is None else self._bias


def as_linear_weight(linear: nn.Module) -> LinearWeight:
    """See a model's linear layer as a `LinearWeight`."""
    if isinstance(linear, LinearWeight):
        # A module is not known to have these names; the line above has just looked.
        return cast("LinearWeight", linear)
    if isinstance(linear, nn.Linear):
        bias: Any = linear.bias
        return DenseWeight(linear.weight.detach(), None if bias is None else bias.detach())
    raise UnsupportedArchitectureError(
        f"a {type(linear).__name__} stands where a linear layer was expected; it needs"
        " `input_permutation`, `matmul` and `fuse_with`"
    )


class JoinedLinears:
    """Linear layers that read the same input, multiplied at once where their weights allow it."""

    def __init__(self, linears: Sequence[nn.Module], *, is_batch_invariant: bool) -> None:
        """is_batch_invariant: every row comes out as it would alone."""
        self._is_batch_invariant = is_batch_invariant
        weights = [as_linear_weight(linear) for linear in linears]
        self.sizes = tuple(weight.out_features for weight in weights)
        fused = weights[0].fuse_with(weights[1:]) if len(weights) > 1 else None
        self._weights = weights if fused is None else [fused]
        self._permutation = self._weights[0].input_permutation
        self._is_order_shared = all(
            is_same_order(self._permutation, weight.input_permutation) for weight in self._weights
        )
        # By weight: place → place in what `matmul` gave; None where outputs come as they should.
        self._outputs = [
            None if weight.output_permutation is None else weight.output_permutation.argsort()
            for weight in self._weights
        ]

    def __call__(self, x: Tensor, *, has_pieces: bool = False) -> Tensor:
        """x: [rows, in] in the model's own order. Returns all outputs side by side, [rows, out].

        Outputs, too, are in the model's order. has_pieces: whether all rows are in pieces of
        prompts.
        """
        multiply = multiply_pieces if has_pieces else self._multiply
        if self._is_order_shared:
            x = _permute(x, self._permutation)
            outputs = [multiply(weight, x) for weight in self._weights]
        else:
            outputs = [
                multiply(weight, _permute(x, weight.input_permutation)) for weight in self._weights
            ]
        outputs = [_permute(out, order) for out, order in zip(outputs, self._outputs, strict=True)]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)

    def in_use(self, *names: str) -> LinearsInUse:
        """Tell of layers of these names, which multiply pieces of prompts, too."""
        # Row by row there are no pieces.
        pieces = None if self._is_batch_invariant else partial(self.__call__, has_pieces=True)
        return LinearsInUse(names, self.sizes, self, pieces)

    @property
    def weights(self) -> tuple[LinearWeight, ...]:
        """What is multiplied by: one weight where all were joined."""
        return tuple(self._weights)

    def _multiply(self, weight: LinearWeight, x: Tensor) -> Tensor:
        multiply = multiply_invariantly if self._is_batch_invariant else multiply_in_any_way
        return multiply(weight, x)


class InvariantLinear(nn.Module):
    """Stands where one of a model's linear layers stood, and gives every row as it would alone."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self._linear = linear  # keeps the weight where `weight` and devices are looked for
        self._joined = JoinedLinears([linear], is_batch_invariant=True)
        (self.out_features,) = self._joined.sizes

    @property
    def weights(self) -> tuple[LinearWeight, ...]:
        """What is multiplied by."""
        return self._joined.weights

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [..., in]: [..., out]."""
        out = self._joined(x.reshape(-1, x.shape[-1]))
        return out.view(*x.shape[:-1], -1)


def weights_in_use(linears: Iterable[LinearsInUse]) -> Iterator[LinearWeight]:
    """Give each weight once that the layers multiply by."""
    seen: set[int] = set()
    for each in linears:
        multiply: object = each.multiply
        if isinstance(multiply, (JoinedLinears, InvariantLinear)):
            weights = multiply.weights
        else:
            weights = (multiply,) if isinstance(multiply, LinearWeight) else ()
        for weight in weights:
            if id(weight) not in seen:
                seen.add(id(weight))
                yield weight


def multiply_invariantly(weight: LinearWeight, x: Tensor) -> Tensor:
    """Multiply x [rows, in], already permuted, few enough rows at a time: [rows, out]."""
    limit = weight.num_invariant_rows
    if limit is None or x.shape[0] == 0:
        return weight.matmul(x)
    # Copied, so that all begin where memory is aligned alike: products may depend on that, too.
    pieces = torch.split(x, limit)
    return torch.cat([weight.matmul(rows.clone()) for rows in pieces])


def is_same_order(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two permutations are alike; None is the model's own order."""
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def _permute(x: Tensor, permutation: Tensor | None) -> Tensor:
    return x if permutation is None else x.index_select(1, permutation)
