"""Linear layers between kernels in C++: in which type they want rows, and whether C++ has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from engine.layers.ways import ManyWaysWeight
from engine.layers.weights import JoinedLinears

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from native.llama_layers import Weight

# The largest relative error of rounding to bfloat16.
_BFLOAT16_ROUNDOFF = 2**-8


@runtime_checkable
class NativeWeight(Protocol):
    """A weight that kernels in C++ may be able to read where it lies."""

    def native_weight(self) -> Weight | None:
        """Give it as they take it, with bias and order of inputs; None where they cannot."""


@runtime_checkable
class RoundingWeight(Protocol):
    """A weight that says how coarsely it rounds, and whether it adds a bias."""

    bias: Tensor | None

    @property
    def unit_roundoff(self) -> float:
        """The largest relative error of one rounding, of activations among others."""


class NativeLinears(JoinedLinears):
    """Linear layers that read the same input, between norms and attention by kernels in C++."""

    def __init__(self, linears: Sequence[nn.Module]) -> None:
        super().__init__(linears, is_batch_invariant=False)
        rounding = [each for each in self._weights if isinstance(each, RoundingWeight)]
        rounding = [each for each in rounding if each.unit_roundoff == _BFLOAT16_ROUNDOFF]
        # Whether all of them round rows to bfloat16, and what they give of pieces.
        self.is_rounding = len(rounding) == len(self._weights)
        # Then rows of pieces may come rounded, and products go: half the memory is read and
        # written. But a bias is added to products in float32, to which they are widened, as some
        # models' biases are too large to be rounded to bfloat16.
        self.takes_rounded = self.is_rounding and all(each.bias is None for each in rounding)

    def __call__(self, x: Tensor, *, has_pieces: bool = False) -> Tensor:
        """Multiply as `JoinedLinears` does; outputs lie row behind row, as kernels read them."""
        return super().__call__(x, has_pieces=has_pieces).contiguous()

    @property
    def most_few_rows(self) -> int | None:
        """Up to how many rows go the way of few, each as it would alone; None: any number."""
        limits = [weight.num_invariant_rows for weight in self._weights]
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def ways_taken(self) -> tuple[str, str, int | None] | None:
        """The ways of few and of many rows, and from how many on rows are many; see `ways`.

        None where there are several weights, or one that has but one way.
        """
        weight = self._weights[0]
        if len(self._weights) > 1 or not isinstance(weight, ManyWaysWeight):
            return None
        return weight.ways_taken

    def native_weight(self) -> Weight | None:
        """Give the whole as one weight of the kernels in C++; None where it is none."""
        weight = self._weights[0]
        if len(self._weights) > 1 or not isinstance(weight, NativeWeight):
            return None
        return weight.native_weight()
