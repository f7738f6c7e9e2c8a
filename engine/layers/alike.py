"""Products of many rows in which it does not show how many there are, and few numbers of rows.

What a row gives is by definition what it gives in a piece of `PIECE_ROWS`; what fills none is
filled up. A library may sum otherwise where there are more, and does not say so; whether
it does is tried where a number of rows first comes up, for each kind and shape of weight, and where
it does, pieces are multiplied one by one. No figure of one processor is relied upon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import structlog
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

log = structlog.get_logger(__name__)

PIECE_ROWS = 16
# On a CPU, up to so many rows any number of pieces is multiplied as it is; beyond, the numbers of
# rows lie a sixteenth of the next power of two apart. oneDNN compiles a product anew for each and
# keeps it: 630 kB for each shape of weight (2026-11), so all numbers of pieces up to 2 048 rows
# would be 320 MB for the four shapes of SmolLM2-135M, and these are 100. They are 4 % more rows on
# average.
_FINE_ROWS = 256

# Of a process: whether products of so many rows are those of pieces; by kind and shape of weight.
_is_alike: dict[tuple[str, int, int, int, int], bool] = {}


class Weight(Protocol):
    """A linear layer's weight, as far as it is multiplied by here."""

    @property
    def in_features(self) -> int: ...

    @property
    def out_features(self) -> int: ...

    @property
    def num_invariant_rows(self) -> int | None:
        """Up to how many rows a kernel for few of them takes, each as alone; None: any number."""

    def matmul(self, x: Tensor) -> Tensor:
        """x: [rows, in] → [rows, out]."""


@runtime_checkable
class TwoWayWeight(Protocol):
    """A weight that multiplies many rows in another way than few, by their number if not told."""

    @property
    def kind(self) -> str:
        """Name what multiplies; weights of one kind and shape take the same ways."""

    def product_of_many(self) -> Callable[[Tensor], Tensor]:
        """Give what does as `matmul`, but by the way of many rows however few there are."""


def multiply_pieces(weight: Weight, x: Tensor) -> Tensor:
    """Multiply x [rows, in], already permuted, by the way of many rows: [rows, out]."""
    if isinstance(weight, TwoWayWeight):
        multiply, kind = weight.product_of_many(), weight.kind
    else:
        multiply, kind = weight.matmul, type(weight).__name__
    # A row alone may be summed otherwise, and so there are few numbers of rows to try.
    return _multiply_whole(multiply, kind, weight, _fill_up(x))[: x.shape[0]]


def multiply_in_any_way(weight: Weight, x: Tensor) -> Tensor:
    """Multiply x [rows, in], already permuted, as is fastest for so many rows: [rows, out].

    On a CPU they are filled up here as well, for the memory that each number of rows takes for
    good; but not where a kernel for few rows takes them, which has one code for all, and costs by
    the row.
    """
    few = weight.num_invariant_rows
    if few is None or x.shape[0] <= max(few, PIECE_ROWS) or x.device.type != "cpu":
        return weight.matmul(x)
    return weight.matmul(_fill_up(x))[: x.shape[0]]


def _fill_up(x: Tensor) -> Tensor:
    """Add rows until their number is one of a few.

    Where it can be such as say something: what is tried with them holds for all that may stand
    there.
    """
    num_rows = x.shape[0]
    missing = filled_up(num_rows, x.device.type) - num_rows
    if not missing:
        return x
    is_enough = missing <= num_rows
    return torch.cat((x, x[:missing])) if is_enough else functional.pad(x, (0, 0, 0, missing))


def filled_up(num_rows: int, device_type: str) -> int:
    """Return to how many rows so many are filled up where they are many."""
    step = PIECE_ROWS
    if device_type == "cpu" and num_rows > _FINE_ROWS:
        step = (1 << (num_rows - 1).bit_length()) * PIECE_ROWS // _FINE_ROWS
    return num_rows + -num_rows % step


def _multiply_whole(
    multiply: Callable[[Tensor], Tensor], kind: str, weight: Weight, x: Tensor
) -> Tensor:
    """Multiply whole pieces, at once where that gives what each would give alone."""
    if x.shape[0] <= PIECE_ROWS:
        return multiply(x)
    key = (
        kind,
        weight.in_features,
        weight.out_features,
        x.shape[0],
        torch.get_num_threads(),  # products are divided among them
    )
    is_alike = _is_alike.get(key)
    if is_alike is False:
        return _by_pieces(multiply, x)
    out = multiply(x)
    if is_alike is None and x.device.type == "cpu" and bool(out.isfinite().all()):
        # NaN equals nothing, and what one request brings about must not decide for all.
        is_alike = _is_alike[key] = _agrees(multiply, x, out)
        if not is_alike:
            log.info("rows_multiplied_in_pieces", kernel=kind, rows=x.shape[0])
            return _by_pieces(multiply, x)
    return out


def _agrees(multiply: Callable[[Tensor], Tensor], x: Tensor, out: Tensor) -> bool:
    """Whether the first, a middle and the last piece come out as they do by themselves.

    Two of them begin and end what threads share out; kernels treat last rows in ways of their own.
    """
    last = x.shape[0] - PIECE_ROWS
    middle = last // (2 * PIECE_ROWS) * PIECE_ROWS
    return all(
        torch.equal(multiply(_piece(x, start)), out[start : start + PIECE_ROWS])
        for start in sorted({0, middle, last})
    )


def _by_pieces(multiply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    starts = range(0, x.shape[0], PIECE_ROWS)
    return torch.cat([multiply(_piece(x, start)) for start in starts])


def _piece(x: Tensor, start: int) -> Tensor:
    # Copied, so that all begin where memory is aligned alike.
    return x[start : start + PIECE_ROWS].clone()
