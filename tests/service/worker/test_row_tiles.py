"""Linear kernels that take many rows another way than few, right and wrong."""

from __future__ import annotations

import torch
from torch import nn

from engine.step_test.step_check import Part
from loaders.model.packed_linear import PackedLinear
from service.worker.row_tiles import NUM_ROWS, PIECES, check_row_tiles


class DenseKernel:
    """A kernel's own way of few and of many rows, each perhaps wrong."""

    input_permutation = None
    num_invariant_rows = None
    unit_roundoff = 2**-24

    def __init__(self, size, many=1.0):
        self._weight = torch.randn(size, size) * size**-0.5
        self._many = many
        self.rows = []

    def __call__(self, x):
        self.rows.append(len(x))
        factor = self._many if len(x) > 64 else 1.0
        return factor * (x @ self._weight)


class Model(nn.Module):
    device = torch.device("cpu")

    def __init__(self, *kernels):
        super().__init__()
        self.layers = nn.ModuleList()
        for kernel in kernels:
            size = len(kernel._weight)
            block = nn.Module()
            block.proj = PackedLinear.from_kernel(kernel, size, size)
            self.layers.append(block)


def check(*kernels):
    (found,) = check_row_tiles(Model(*kernels), torch.float32)
    return found


def test_each_way_to_multiply_meets_the_same_rows():
    kernel = DenseKernel(32)
    found = check(kernel)
    assert (found.name, found.part, found.passed) == ("many rows", Part.LINEARS, True)
    assert kernel.rows == [*PIECES, NUM_ROWS]
    assert [rows > 64 for rows in kernel.rows] == [False, False, False, True]
    assert {rows > 16 for rows in PIECES} == {True, False}


def test_many_rows_that_differ_from_few_fail_whichever_shape_it_is():
    found = check(DenseKernel(32), DenseKernel(48, many=1.01), DenseKernel(32))
    assert found.passed is False
    assert found.worst > 3


def test_one_layer_of_each_shape_is_enough():
    kernels = [DenseKernel(32), DenseKernel(32), DenseKernel(32)]
    assert check(*kernels).passed
    assert sum(bool(kernel.rows) for kernel in kernels) == 1


def test_a_model_without_packed_layers_has_nothing_that_could_fail():
    assert check().passed
