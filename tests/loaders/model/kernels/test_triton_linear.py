"""The backend of packed layers on CUDA, in Triton's interpreter: which way rows go, and what of."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from loaders.errors import BackendError
from loaders.model.kernels import launches
from loaders.model.kernels.protocol import GroupedBackend, LayerShape
from loaders.model.kernels.resolve import resolve_backend
from loaders.model.kernels.triton.levels import INTERPRETED
from loaders.model.kernels.triton.workspace import workspace_of
from loaders.model.kernels.triton_linear import TritonBackend, TritonKernel
from loaders.model.self_test.layers import Bounds, Expected
from loaders.quantization.packed_format import PackedFormat
from loaders.quantization.packed_tensors import PackedTensors
from loaders.quantization.packing import pack_gptq_codes, pack_gptq_zeros
from loaders.quantization.plane_layout import MAX_FEW_ROWS
from tests.grouped_weights import exact, grouped_weight

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="tests/gpu runs it on a GPU")

CPU = torch.device("cpu")
FORMAT = PackedFormat("gptq", "gptq", 4, 32)


def kernel_of(weight, bias=None, dtype=torch.float16):
    return TritonBackend().prepare_grouped(weight, bias, dtype)


def expected(weight, x, bias=None):
    product = x.double() @ exact(weight).t()
    return product if bias is None else product + bias.double()


@pytest.mark.parametrize(
    ("num_rows", "name"),
    [
        (1, "linear_few_rows"),
        (MAX_FEW_ROWS, "linear_few_rows"),
        (MAX_FEW_ROWS + 1, "linear_dequantize"),
        (300, "linear_dequantize"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_few_rows_and_many_go_their_ways_in_one_launch_each(num_rows, name, dtype):
    weight, bias = grouped_weight(4, 32, 96, 65), torch.randn(65)
    kernel = kernel_of(weight, bias, dtype)
    x = torch.randn(num_rows, 96).to(dtype)
    with launches.counted() as found:
        product = kernel(x)
    assert found == {name: 1}
    wanted = expected(weight, x, bias)
    assert product.dtype == dtype
    assert (product.double() - wanted).norm() / wanted.norm() < 2**-10


def test_nothing_is_counted_outside():
    kernel = kernel_of(grouped_weight(4, 32, 64, 64))
    with launches.counted() as found:
        pass
    kernel(torch.zeros(1, 64).half())
    assert not found


def test_no_rows_give_no_rows():
    kernel = kernel_of(grouped_weight(4, 32, 64, 70))
    assert kernel(torch.empty(0, 64).half()).shape == (0, 70)


@pytest.mark.parametrize("num_rows", [3, 80])
@pytest.mark.parametrize(
    ("bits", "zeros"), [(3, "common"), (4, "whole"), (5, "float"), (8, "whole")]
)
def test_products_are_within_what_the_self_test_allows(bits, zeros, num_rows):
    weight = grouped_weight(bits, 32, 96, 64, zeros=zeros)
    kernel = kernel_of(weight)
    x = torch.randn(num_rows, 96).half()
    bounds = Bounds.of(kernel.unit_roundoff, x.dtype)
    findings = Expected.of(x.float(), exact(weight).float(), None).compare(
        kernel(x).float(), bounds, "here"
    )
    assert max(findings)[0] <= 1


@pytest.mark.parametrize("bits", [4, 6])
def test_the_weight_is_shown_by_the_products_themselves(bits):
    weight = grouped_weight(bits, 32, 96, 70)
    kernel = kernel_of(weight, torch.randn(70), torch.float32)
    with launches.counted() as found:
        shown = kernel.dequantize()
    assert found["linear_few_rows"] == 2
    torch.testing.assert_close(shown, exact(weight).float())


def test_roundings_are_those_of_the_activations_unless_scales_are_rounded():
    exact_one = grouped_weight(4, 32, 64, 64)
    rounded = grouped_weight(4, 32, 64, 64, zeros="float")
    found = {
        dtype: (kernel_of(exact_one, None, dtype).unit_roundoff,
                kernel_of(rounded, None, dtype).unit_roundoff)
        for dtype in (torch.float16, torch.bfloat16, torch.float32)
    }  # fmt: skip
    assert found[torch.float16] == (2**-11, 2**-11)
    assert found[torch.bfloat16] == (2**-8, 2**-8)
    assert found[torch.float32] == (2**-24, 2**-11)


def act_order_layer(in_features=96, out_features=64):
    generator = torch.Generator().manual_seed(0)
    groups = -(-in_features // 32)

    def codes(*shape):
        return torch.randint(0, 16, shape, dtype=torch.uint8, generator=generator)

    order = torch.randperm(in_features, generator=generator)
    return PackedTensors(
        name="layer",
        format=FORMAT,
        in_features=in_features,
        out_features=out_features,
        stored={
            "qweight": pack_gptq_codes(codes(in_features, out_features), 4),
            "qzeros": pack_gptq_zeros(codes(groups, out_features), 4, checkpoint_format="gptq"),
            "scales": (torch.rand(groups, out_features, generator=generator) * 0.02).half(),
            "g_idx": (torch.arange(in_features) // 32)[order].to(torch.int32),
        },
    )


@pytest.mark.parametrize("num_rows", [2, 70])
def test_act_order_is_one_permutation_of_the_inputs(num_rows):
    tensors = act_order_layer()
    kernel = TritonBackend().prepare(tensors)
    assert isinstance(kernel, TritonKernel)
    x = torch.randn(num_rows, 96)
    found = kernel(x[:, kernel.input_permutation])
    torch.testing.assert_close(found, x @ tensors.dequantize().t(), rtol=1e-4, atol=1e-5)


def test_layers_share_what_they_need_while_they_multiply():
    """A step must not allocate it, and a graph keeps its address."""
    large = kernel_of(grouped_weight(4, 128, 384, 100))
    held = workspace_of(CPU)
    addresses = held.partials.data_ptr(), held.locks.data_ptr(), held.num_bytes
    small = kernel_of(grouped_weight(4, 128, 256, 64))
    for kernel, inputs in ((large, 384), (small, 256)):
        for rows in (1, 33, MAX_FEW_ROWS + 1):
            kernel(torch.randn(rows, inputs).half())
    assert workspace_of(CPU) is held
    assert (held.partials.data_ptr(), held.locks.data_ptr(), held.num_bytes) == addresses
    assert not held.locks.any()


def test_rows_wider_than_it_was_prepared_for_find_room():
    weight = grouped_weight(4, 32, 96, 100)
    kernel, x = kernel_of(weight, None, torch.float16), torch.randn(70, 96)
    torch.testing.assert_close(kernel(x), expected(weight, x).float(), rtol=1e-4, atol=1e-4)


def test_it_joins_nothing_that_is_packed_already():
    kernel = kernel_of(grouped_weight(4, 32, 64, 64))
    assert kernel.fuse([kernel]) is None
    assert isinstance(TritonBackend(), GroupedBackend)


def shape(device="cuda", capability=(9, 0)):
    return LayerShape(FORMAT, 96, 64, torch.device(device), torch.float16, capability)


def test_a_gpu_takes_it_and_a_cpu_that_stands_for_one():
    assert resolve_backend("auto", shape())[0].name == "triton"
    assert resolve_backend("auto", shape("cpu"))[0].name == "triton"
    assert resolve_backend("auto", shape("cpu", None))[0].name == "int4pack"
    assert resolve_backend("auto", shape(capability=(7, 5)))[0].name == "reference"
    with pytest.raises(BackendError, match=r"needs compute capability 8\.0, this GPU has 7\.5"):
        resolve_backend("triton", shape(capability=(7, 5)))


def test_what_failed_before_is_left_to_the_reference():
    backend, reason = resolve_backend("auto", shape(), frozenset({"triton"}))
    assert backend.name == "reference"
    assert "triton has failed here" in reason


@pytest.mark.slow
def test_backends_are_listed_where_triton_is_missing():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from loaders.model.kernels.resolve import backend_names\n"
        "assert 'triton' in backend_names()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
