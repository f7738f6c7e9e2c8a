"""The layer around a kernel."""

import pytest
import torch

from loaders.errors import BackendError
from loaders.model.kernels import int4_blocks
from loaders.model.kernels.fp16pack import Fp16PackBackend
from loaders.model.kernels.int4pack import Int4PackBackend
from loaders.model.kernels.int4planes import Int4PlanesBackend
from loaders.model.packed_linear import PackedLinear
from loaders.quantization.packed_format import PackedFormat
from loaders.quantization.packed_tensors import PackedTensors
from loaders.quantization.packing import pack_gptq_codes, pack_gptq_zeros
from native import library

library.why_not()  # loads the kernels in C++, whose ways are tested, where there are any
NATIVE_CASES = [(Int4PackBackend(), 4, 1), (Int4PackBackend(), 2, 1), (Int4PlanesBackend(), 8, 2)]


class JoinedKernel:
    """A kernel that joins with any other."""

    def fuse(self, others):
        return self


def packed_tensors(bits, *, act_order=False):
    """Weights [96, 128] in two groups."""
    generator = torch.Generator().manual_seed(bits)
    g_idx = torch.arange(128) // 64
    if act_order:
        g_idx = g_idx[torch.randperm(128, generator=generator)]
    codes = torch.randint(0, 2**bits, (128, 96), dtype=torch.uint8, generator=generator)
    zeros = torch.randint(0, 2**bits, (2, 96), dtype=torch.uint8, generator=generator)
    return PackedTensors(
        name="layer",
        format=PackedFormat("gptq", "gptq", bits, 64),
        in_features=128,
        out_features=96,
        stored={
            "qweight": pack_gptq_codes(codes, bits),
            "qzeros": pack_gptq_zeros(zeros, bits, checkpoint_format="gptq"),
            "scales": (torch.rand(2, 96, generator=generator) * 0.02 + 0.001).half(),
            "g_idx": g_idx.to(torch.int32),
        },
    )


def layer(bias):
    return PackedLinear.from_kernel(JoinedKernel(), 4, 3, bias=bias)


def test_layers_without_a_bias_join_with_those_that_have_one_where_that_lies():
    bias = torch.ones(3, device="meta", dtype=torch.float16)
    joined = layer(None).fuse_with([layer(bias), layer(None)])
    assert (joined.bias.shape, joined.bias.device.type, joined.bias.dtype) == (
        (9,),
        "meta",
        torch.float16,
    )
    known = layer(torch.tensor([1.0, 2.0, 3.0])).fuse_with([layer(None)])
    assert known.bias.tolist() == [1.0, 2.0, 3.0, 0.0, 0.0, 0.0]
    assert layer(None).fuse_with([layer(None)]).bias is None


@pytest.mark.parametrize(("backend", "bits", "planes"), NATIVE_CASES)
def test_a_layer_in_int4_blocks_gives_its_weight_to_the_kernels_in_cpp(backend, bits, planes):
    kernel = backend.prepare(packed_tensors(bits, act_order=True))
    bias = torch.randn(96)
    weight = PackedLinear.from_kernel(kernel, 128, 96, bias=bias).native_weight()
    assert (weight.out_features, weight.num_planes) == (96, planes)
    assert weight.packed.data_ptr() == kernel._packed.data_ptr()  # no second one
    assert weight.packed.shape == (128, 64 * planes)
    assert weight.scales_and_minima.shape == (2 * planes, 128, 2)
    assert torch.equal(weight.bias, bias)
    assert torch.equal(weight.input_permutation, kernel.input_permutation)
    assert PackedLinear.from_kernel(kernel, 128, 96).native_weight().bias is None


def test_other_layers_and_blocks_give_the_kernels_in_cpp_nothing(monkeypatch):
    blocks = Int4PackBackend().prepare(packed_tensors(4))
    order = torch.arange(96)
    other_order = PackedLinear.from_kernel(blocks, 128, 96, output_permutation=order)
    assert other_order.native_weight() is None
    other_kernel = Fp16PackBackend().prepare(packed_tensors(4))
    assert PackedLinear.from_kernel(other_kernel, 128, 96).native_weight() is None
    monkeypatch.setattr(int4_blocks, "block_size", lambda: 32)  # of a CPU without AVX-512
    assert PackedLinear.from_kernel(blocks, 128, 96).native_weight() is None


def test_each_way_of_a_layer_adds_its_bias_and_is_named_in_its_kind():
    kernel, bias = Int4PackBackend().prepare(packed_tensors(4)), torch.randn(96)
    layer = PackedLinear.from_kernel(kernel, 128, 96, bias=bias, backend="int4pack")
    x = torch.randn(4, 128)
    for ways, own in (
        (layer.ways_of_few(), kernel.ways_of_few()),
        (layer.ways_of_many(), kernel.ways_of_many()),
    ):
        assert ways.keys() == own.keys()
        for name, make in ways.items():
            torch.testing.assert_close(make()(x), own[name]()(x) + bias)
    layer.choose_ways(few="int4pack", many="int4pack", many_from=None)
    assert layer.ways_taken == ("int4pack", "int4pack", None)
    assert layer.kind == "int4pack int4pack"
    assert layer.shape_key == kernel.shape_key == "int4pack 128x96 g64"


def test_a_layer_whose_kernel_has_one_way_offers_none_to_choose():
    kernel = Fp16PackBackend().prepare(packed_tensors(4))
    layer = PackedLinear.from_kernel(kernel, 128, 96, backend="fp16pack")
    assert (layer.ways_taken, layer.shape_key, layer.kind) == (None, "", "fp16pack")
    assert (layer.ways_of_few(), layer.ways_of_many()) == ({}, {})
    with pytest.raises(BackendError, match="one way"):
        layer.choose_ways(few="int4pack", many="tiles", many_from=4)
