"""Every GGUF block type against the gguf package, and each kernel against its reference."""

from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from loaders.errors import TensorError
from loaders.model.kernels.protocol import LayerShape
from loaders.model.kernels.reference import ReferenceBackend
from loaders.model.kernels.resolve import resolve_backend
from loaders.quantization.layouts.gguf import BLOCK_TYPES as LAYOUTS
from loaders.quantization.layouts.gguf import dequantize
from loaders.quantization.packed_format import PackedFormat
from loaders.quantization.packed_tensors import PackedTensors
from tests.gguf_writer import BLOCK_TYPES, decode, encode

# Where each type's blocks hold halves: scales, and minima.
HALVES = {
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
}  # fmt: skip
FASTEST = {
    "Q2_K": "fp16pack", "Q3_K": "fp16pack", "Q6_K": "fp16pack",
    "Q4_0": "int4pack", "Q4_1": "int4pack", "Q4_K": "int4pack",
    "Q5_0": "int4planes", "Q5_1": "int4planes", "Q5_K": "int4planes", "Q8_0": "int4planes",
}  # fmt: skip
# Weights rounded by a kernel, relative to the largest of their group; measured 2026-11: 0.0044
# (int4pack), 0.0024 (int4planes), 0.0005 (fp16pack).
MAX_WEIGHT_ERROR = {"int4pack": 0.008, "int4planes": 0.008, "fp16pack": 0.001}
CPU = torch.device("cpu")


def packed(dtype, stored, rows=None):
    layout = LAYOUTS[dtype]
    blocks = torch.from_numpy(np.ascontiguousarray(stored))
    tensors = {"blocks": blocks} if rows is None else {"blocks": blocks, "rows": rows}
    return PackedTensors(
        name="layer",
        format=PackedFormat("gguf", dtype, layout.bits, layout.group_size),
        in_features=stored.shape[1] // layout.num_bytes * layout.weights,
        out_features=len(stored),
        stored=tensors,
    )


def weights(shape, *, seed=0):
    return np.random.default_rng(seed).normal(0.0, 0.05, shape).astype(np.float32)


def of_group(values, size=16):
    """The largest of each 16 values that may share a scale, for each value."""
    grouped = np.abs(values).reshape(len(values), -1, size).max(2)
    return grouped.repeat(size, axis=1)


@st.composite
def any_blocks(draw, dtype):
    """Rows of arbitrary blocks; halves are finite, else anything: zero, subnormal, huge."""
    size = LAYOUTS[dtype].num_bytes
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    blocks = np.frombuffer(
        draw(st.binary(min_size=rows * columns * size, max_size=rows * columns * size)),
        dtype=np.uint8,
    ).reshape(rows, columns, size)
    blocks = blocks.copy()
    for at in HALVES[dtype]:
        half = st.floats(width=16, allow_nan=False, allow_infinity=False)
        for row in range(rows):
            value = np.float16(draw(st.one_of(half, st.sampled_from([0.0, 6e-8, -6e-8, 65504.0]))))
            blocks[row, :, at : at + 2] = np.frombuffer(value.tobytes(), dtype=np.uint8)
    return blocks.reshape(rows, -1)


@pytest.mark.parametrize("dtype", BLOCK_TYPES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_block_means_what_the_gguf_package_says_to_float32_rounding(dtype, data):
    stored = data.draw(any_blocks(dtype))
    expected = decode(stored, dtype)
    tensors = packed(dtype, stored)
    # A sum of a product and a minimum is rounded in another order, 2^-23 of the larger of the two.
    bound = 4 * 2.0**-23 * _largest_part(tensors)
    for found in (tensors.dequantize(), tensors.to_grouped().dequantize()):
        assert (np.abs(found.numpy() - expected) <= bound).all()
    assert (dequantize(LAYOUTS[dtype], torch.from_numpy(stored)).numpy() == expected).all()


def _largest_part(tensors):
    grouped = tensors.to_grouped()
    highest = 2**grouped.bits - 1 + grouped.zeros.abs()
    return (highest * grouped.scales.abs()).repeat_interleave(grouped.group_size, 0).t().numpy()


@pytest.mark.parametrize("dtype", BLOCK_TYPES)
def test_groups_of_one_value_keep_it_although_their_scale_is_zero(dtype):
    """Such are written where all weights of a group are alike: a minimum and nothing else."""
    values = weights((8, 512))
    values[:, :32] = -0.03
    values[3] = 0
    stored = encode(values, dtype)
    torch.testing.assert_close(
        packed(dtype, stored).dequantize().numpy(), decode(stored, dtype), rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("dtype", BLOCK_TYPES)
def test_rows_are_taken_in_the_order_that_is_said(dtype):
    stored = encode(weights((6, 256)), dtype)
    order = torch.tensor([4, 0, 2, 5, 1, 3], dtype=torch.int32)
    found = packed(dtype, stored, order).dequantize()
    assert torch.equal(found, packed(dtype, stored).dequantize()[order])


@pytest.mark.parametrize("dtype", BLOCK_TYPES)
def test_the_encoder_of_the_tests_rounds_as_the_gguf_package_does(dtype):
    values = weights((16, 512))
    error = np.abs(decode(encode(values, dtype), dtype) - values).mean()
    assert error < 2.0 ** -LAYOUTS[dtype].bits * 0.06
    kind = GGMLQuantizationType[dtype]
    try:
        theirs = decode(gguf.quants.quantize(values, kind), dtype)
    except NotImplementedError:
        return  # the package only reads the K types
    assert error < 1.1 * np.abs(theirs - values).mean()


@pytest.mark.parametrize("dtype", BLOCK_TYPES)
def test_a_product_of_scales_in_half_precision_is_off_by_a_bounded_part_of_a_step(dtype):
    """What a GPU kernel gets, which takes scales and float zero points as halves."""
    weight = packed(dtype, encode(weights((32, 512)), dtype)).to_grouped()
    halves = replace(weight, scales=weight.scales.half().float(), zeros=weight.zeros.half().float())
    scales, zeros = weight.scales.abs(), weight.zeros.abs()
    # Relative to 2^-11, and to half the smallest half where a scale is below the normal ones.
    steps = 2**weight.bits + zeros
    bound = steps * (scales * 2**-11 + 2**-25) + (scales + 2**-25) * zeros * 2**-11
    allowed = bound.repeat_interleave(weight.group_size, 0).t()
    assert bool(((halves.dequantize() - weight.dequantize()).abs() <= allowed).all())
    # In all: below what bfloat16 activations cost anyway.
    error = (halves.dequantize() - weight.dequantize()).norm() / weight.dequantize().norm()
    assert float(error) < 2**-9


@pytest.mark.parametrize("dtype", BLOCK_TYPES)
def test_each_type_gets_the_kernel_that_was_measured_fastest_and_it_multiplies_right(dtype):
    tensors = packed(dtype, encode(weights((192, 512)), dtype))
    shape = LayerShape(tensors.format, 512, 192, CPU)
    backend, _ = resolve_backend("auto", shape)
    assert backend.name == FASTEST[dtype]
    kernel = backend.prepare(tensors)
    exact = tensors.dequantize()
    limit = MAX_WEIGHT_ERROR[backend.name] * of_group(exact.numpy(), 32)
    assert (np.abs((kernel.dequantize() - exact).numpy()) <= limit).all()
    for count in (1, 7, 64):
        x = torch.randn(count, 512, generator=torch.Generator().manual_seed(count))
        expected = x @ exact.t()
        assert float((kernel(x) - expected).norm() / expected.norm()) < 2**-7
        reference = ReferenceBackend().prepare(tensors)(x)
        torch.testing.assert_close(reference, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["Q4_1", "Q4_K", "Q5_1", "Q5_K"])
def test_groups_far_from_zero_lose_no_more_than_their_size_tells(dtype):
    """Zero points lie far outside the codes there: weights of 1.0 give or take a little."""
    tensors = packed(dtype, encode(weights((64, 256)) * 0.1 - 1.0, dtype))
    backend, _ = resolve_backend("auto", LayerShape(tensors.format, 256, 64, CPU))
    exact = tensors.dequantize()
    assert bool(((backend.prepare(tensors).dequantize() - exact).abs() < 2**-7).all())


@pytest.mark.parametrize("dtype", ["Q4_K", "Q6_K", "Q8_0"])
def test_a_large_head_is_prepared_in_pieces_that_make_the_same_kernel(dtype, monkeypatch):
    tensors = packed(dtype, encode(weights((200, 256)), dtype))
    backend, _ = resolve_backend("auto", LayerShape(tensors.format, 256, 200, CPU))
    whole = backend.prepare(tensors).dequantize()
    monkeypatch.setattr("loaders.model.kernels.int4_blocks._VALUES_AT_ONCE", 256 * 64)
    monkeypatch.setattr("loaders.model.kernels.fp16pack.MAX_PIECE_ROWS", 64)
    monkeypatch.setattr("loaders.model.kernels.fp16pack._ROWS_AT_ONCE", 24)
    kernel = backend.prepare(tensors)
    assert torch.equal(kernel.dequantize(), whole)
    x = torch.randn(3, 256)
    assert kernel(x).shape == (3, 200)


@pytest.mark.parametrize(
    ("dtype", "at", "what"), [("Q4_K", 0, "scales"), ("Q4_K", 2, "zero points")]
)
def test_blocks_with_scales_that_are_no_numbers_are_refused(dtype, at, what):
    stored = encode(weights((4, 256)), dtype)
    stored[1, at : at + 2] = np.frombuffer(np.float16(np.inf).tobytes(), dtype=np.uint8)
    with pytest.raises(TensorError, match=rf"layer.*{what}"):
        packed(dtype, stored).check_values()
