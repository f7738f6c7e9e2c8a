"""What the kernels' tests share: where they run, memory that shows what was not written, bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import pytest
    from torch import Tensor

# Without a GPU in Triton's interpreter, see tests/conftest.py.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Of a number: sums in another order, then one rounding. Two in bfloat16, one of them of the
# residual, each a whole last bit since the interpreter cuts it off.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-6}


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Hold what a kernel stored against its reference, each number by itself."""
    assert found.dtype == expected.dtype
    bound = TOLERANCE[found.dtype]
    torch.testing.assert_close(found, expected, rtol=bound, atol=bound / 10)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, NaN and all."""
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def apart(rows: Tensor, gap: int = 7) -> Tensor:
    """Copy rows to memory where NaN lies between them."""
    height, width = rows.shape
    wide = torch.full((height, width + gap), float("nan"), dtype=rows.dtype, device=rows.device)
    wide[:, :width] = rows
    return wide[:, :width]


def gaps(rows: Tensor) -> Tensor:
    """Give what lies between rows that `apart` has made."""
    whole = rows.as_strided((rows.shape[0], rows.stride(0)), (rows.stride(0), 1))
    return whole[:, rows.shape[1] :]


def poison_new_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let fresh tensors hold NaN, so that what a kernel leaves out is seen."""
    empty = torch.empty

    def poisoned(*size: object, **options: object) -> Tensor:
        made = empty(*size, **options)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)
