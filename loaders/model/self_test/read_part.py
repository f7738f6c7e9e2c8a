"""Some outputs of one layer as the files hold them, read and ready to be compared with products.

Made in whatever thread may wait for files; compared in the one that multiplies, which reads none.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

from loaders.model.self_test.layers import Bounds, Expected, compare_products
from loaders.quantization.kernel_rules import ROWS_OF_OTHER_WAYS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from loaders.model.packed_linear import PackedLinear
    from loaders.reports.self_test import Check

    # Multiplies rows [rows, in] by a layer's weight as it is used now: [rows, out].
    Multiply: TypeAlias = Callable[[Tensor], Tensor]

# Kernels take few rows another way than many; rounds take turns.
MANY_ROWS = 64
FEW_ROWS = (1, 2, 4)
_FEW = ((0, 1), (1, 2), (3, 4))  # where each begins, and how many
# A layer fails when it does so again with other inputs, of many rows each time.
CONFIRMATIONS = 2
# Products of many rows by a large head would hold a request up: 28 M weights by 4 rows take 2 ms,
# by 64 rows 60 (two cores, 2026-11).
MAX_MULTIPLICATIONS = 2**27
# A part holds no more weights than this where it can be cut: 8 MB in float32, read in 4 ms.
MAX_PART_WEIGHTS = 2**21


@dataclass(frozen=True, slots=True)
class LayerPart:
    """Some outputs of one layer."""

    name: str  # the layer's
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """What must be known of a layer once its module is gone."""

    in_features: int
    out_features: int
    backend: str
    unit_roundoff: float
    bias: Tensor | None  # [out] float32, on the CPU

    @classmethod
    def of(cls, layer: PackedLinear) -> LayerFacts:
        bias = None if layer.bias is None else layer.bias.detach().float().cpu().clone()
        return cls(layer.in_features, layer.out_features, layer.backend, layer.unit_roundoff, bias)


class ReadPart:
    """A part's weight, inputs, and what the files say that they give."""

    def __init__(
        self,
        part: LayerPart,
        layer: LayerFacts,
        weight: Tensor,
        draw: Callable[[int], Tensor],
        *,
        with_many_rows: bool,
    ) -> None:
        """weight: [the part's outputs, in] float32. draw: gives so many rows of inputs."""
        self._part, self._layer, self._weight, self._draw = part, layer, weight, draw
        self.with_many_rows = with_many_rows
        self._x = draw(self._num_rows())
        self._expected = self._expect(self._x)

    @torch.inference_mode()
    def compare(self, multiply: Multiply) -> Check:
        """Compare products with the files; multiply gives all of the layer's outputs.

        It is to go the way of many rows where these are, however few they may be.
        """
        with one_thread(is_wanted=self._is_small):
            check = self._compare(multiply, self._x, self._expected)
            for _ in range(CONFIRMATIONS):
                if check.passed is False:
                    x = self._draw(self._many_rows)
                    check = self._compare(multiply, x, self._expect(x))
            return check

    @property
    def _is_small(self) -> bool:
        return self._weight.numel() <= MAX_PART_WEIGHTS

    @property
    def _many_rows(self) -> int:
        """So many that a kernel that goes by their number takes the way that is its last."""
        return max((MANY_ROWS, *ROWS_OF_OTHER_WAYS.get(self._layer.backend, ())))

    def _num_rows(self) -> int:
        """How many rows to multiply in passing."""
        wanted = self._many_rows if self.with_many_rows else sum(FEW_ROWS)
        if wanted > MANY_ROWS and self._is_small:
            return (
                wanted  # fewer would go another way; what has one runs on GPUs, where it is brief
            )
        most = MAX_MULTIPLICATIONS // (self._layer.in_features * self._layer.out_features)
        return min(wanted, max(FEW_ROWS[-1], most))

    def _expect(self, x: Tensor) -> Expected:
        bias = self._layer.bias
        part_bias = None if bias is None else bias[self._part.start : self._part.stop]
        return Expected.of(x.float().cpu(), self._weight, part_bias)

    def _compare(self, multiply: Multiply, x: Tensor, expected: Expected) -> Check:
        products = (
            (how, product[:, self._part.start : self._part.stop])
            for how, product in _products(multiply, x, with_many_rows=self.with_many_rows)
        )
        bounds = Bounds.of(self._layer.unit_roundoff, x.dtype)
        return compare_products(self._part.name, self._layer.backend, products, expected, bounds)


@contextmanager
def one_thread(*, is_wanted: bool = True) -> Iterator[None]:
    """Have what is small computed by this thread alone.

    Two are hardly quicker there, cost twice as much of an idle machine, and wait for each other
    on a busy one: 10 ms of the demo's became 190 with ten processes on two cores (2026-11).
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1 if is_wanted else num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _products(
    multiply: Multiply, x: Tensor, *, with_many_rows: bool
) -> Iterator[tuple[str, Tensor]]:
    if with_many_rows:
        yield f"{len(x)} rows at once", multiply(x)
        return
    pieces: list[Tensor] = []
    for rows in torch.split(x, sum(FEW_ROWS)):
        pieces += [rows[first : first + size] for first, size in _FEW if first < len(rows)]
    yield "few rows at once", torch.cat([multiply(rows) for rows in pieces])
