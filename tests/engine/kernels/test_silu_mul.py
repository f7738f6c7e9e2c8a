"""The kernel beside its reference; on a GPU if there is one, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from engine.kernels.launches import counted
from tests.engine.kernels.poisoned import (
    DEVICE,
    DTYPES,
    apart,
    assert_close,
    poison_new_memory,
    same_bits,
)

pytest.importorskip("triton", reason="Triton is not installed")
from engine.kernels.silu_mul import reference, silu_mul


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 1536), (300, 65), (3, 1024), (2, 2048), (7, 1)])
def test_it_multiplies_like_the_reference(
    monkeypatch: pytest.MonkeyPatch, rows: int, width: int, dtype: torch.dtype
):
    poison_new_memory(monkeypatch)
    gate_up = (torch.randn(rows, 2 * width, device=DEVICE) * 3).to(dtype)
    before = gate_up.clone()
    with counted() as launches:
        found = silu_mul(gate_up)
    assert_close(found, reference(gate_up))
    assert same_bits(gate_up, before)
    assert launches == {"silu_mul": 1}


def test_gates_far_from_zero_are_the_identity_and_zero():
    gate_up = torch.tensor([[80.0, -80.0, 0.0, 2.0, 3.0, 4.0]], device=DEVICE)
    assert silu_mul(gate_up).tolist() == [[160.0, pytest.approx(0.0, abs=1e-30), 0.0]]


def test_rows_may_lie_apart():
    gate_up = apart(torch.randn(3, 600, device=DEVICE))
    assert_close(silu_mul(gate_up), reference(gate_up))


def test_rows_may_lie_further_apart_than_32_bits_count():
    """Memory that nobody touches takes none."""
    stride = 2**30
    memory = torch.empty(2 * stride + 64, dtype=torch.float16, device=DEVICE)
    gate_up = memory.as_strided((3, 64), (stride, 1))
    numbers = torch.randn(3, 64, device=DEVICE).half()
    gate_up.copy_(numbers)
    assert_close(silu_mul(gate_up), reference(numbers))
