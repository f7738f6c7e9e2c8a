"""Step kernels that are wrong on purpose, each in a way that a kernel might be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.kernels.step_kernels import DecodeRows
from engine.kernels.torch_kernels import TorchKernels
from engine.step_test.kernels import KernelTest
from engine.step_test.step_check import Part
from engine.step_test.step_sizes import StepSizes

SIZES = StepSizes(
    hidden=72,
    intermediate=96,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    eps=1e-5,
    windows=(None, 9),
    has_head_norm=True,
    dtype=torch.float16,
    kept_as=torch.float16,
    is_scaled=False,
    block_size=16,
    max_model_len=64,
    max_num_seqs=4,
    device=torch.device("cpu"),
)
NAMES = ["add_norm", "silu_mul", "rotate_and_store", "decode_attention"]


def checks_of(kernels, sizes=SIZES):
    return {check.name: check for check in KernelTest(kernels, TorchKernels(), sizes).run()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_references_pass_against_themselves_whatever_the_poison(dtype):
    for kept in (dtype, torch.float8_e4m3fn):
        sizes = replace(SIZES, dtype=dtype, kept_as=kept, is_scaled=kept != dtype)
        found = checks_of(TorchKernels(), sizes)
        assert list(found) == NAMES
        assert all(check.passed and check.worst == 0 for check in found.values())


class NoAdd(TorchKernels):
    """Forgets to write the sum back."""

    def add_norm(self, residual, delta, weight, eps, order):
        return super().add_norm(residual.clone(), delta, weight, eps, order)


class NoOrder(TorchKernels):
    def add_norm(self, residual, delta, weight, eps, order):
        return super().add_norm(residual, delta, weight, eps, None)


class UpFirst(TorchKernels):
    def silu_mul(self, gate_up):
        return super().silu_mul(torch.cat(gate_up.chunk(2, dim=1)[::-1], dim=1))


class NextSlot(TorchKernels):
    def rotate_and_store(self, qkv, rotation, positions, slots, layer, **others):
        slots = (slots + 1) % layer.values.shape[0]
        return super().rotate_and_store(qkv, rotation, positions, slots, layer, **others)


class NoHeadNorm(TorchKernels):
    def rotate_and_store(self, *arguments, head_norm, **others):
        return super().rotate_and_store(*arguments, head_norm=None, **others)


class OneTokenMore(TorchKernels):
    """Sees a place behind the last token."""

    def decode_attention(self, query, layer, rows, **others):
        rows = DecodeRows(rows.slots, rows.positions + 1, rows.tables, rows.block_size)
        width = rows.tables.shape[1] * rows.block_size
        rows = replace(rows, positions=rows.positions.clamp(max=width - 1))
        return super().decode_attention(query, layer, rows, **others)


class NoWindow(TorchKernels):
    def decode_attention(self, *arguments, window, **others):
        return super().decode_attention(*arguments, window=None, **others)


class RowsAsSlots(TorchKernels):
    def decode_attention(self, query, layer, rows, **others):
        rows = replace(rows, slots=torch.arange(len(rows.slots)))
        return super().decode_attention(query, layer, rows, **others)


@pytest.mark.parametrize(
    ("kernels", "name"),
    [
        (NoAdd, "add_norm"),
        (NoOrder, "add_norm"),
        (UpFirst, "silu_mul"),
        (NextSlot, "rotate_and_store"),
        (NoHeadNorm, "rotate_and_store"),
        (OneTokenMore, "decode_attention"),
        (NoWindow, "decode_attention"),
        (RowsAsSlots, "decode_attention"),
    ],
)
def test_a_wrong_kernel_is_named_and_the_others_are_not(kernels, name):
    found = checks_of(kernels())
    assert [check.name for check in found.values() if not check.passed] == [name]
    assert found[name].worst > 3
    assert (found[name].part, found[name].passed) == (Part.STEP_KERNELS, False)
    assert found[name].detail.startswith("torch: off by ")


def test_what_is_no_number_is_the_worst_of_all():
    class NoNumbers(TorchKernels):
        def silu_mul(self, gate_up):
            return super().silu_mul(gate_up) * torch.nan

    assert checks_of(NoNumbers())["silu_mul"].worst == 1e9
