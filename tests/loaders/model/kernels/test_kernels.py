"""Every kernel against float32 arithmetic, layer by layer, with the scales that it rounds to."""

from dataclasses import replace

import pytest
import torch

from loaders.errors import BackendError, TensorError
from loaders.model.kernels import int4_blocks
from loaders.model.kernels.fp16pack import Fp16PackBackend
from loaders.model.kernels.int4pack import Int4PackBackend, Int4PackKernel
from loaders.model.kernels.int4planes import Int4PlanesBackend
from loaders.model.kernels.int8pack import MIN_ROWS_FOR_DENSE, Int8PackBackend
from loaders.model.kernels.protocol import LayerShape
from loaders.model.kernels.reference import ReferenceBackend
from loaders.model.kernels.resolve import BACKENDS, resolve_backend
from loaders.quantization import kernel_rules
from loaders.quantization.kernel_rules import DeviceFacts, PackedSize
from loaders.quantization.packed_format import PackedFormat
from tests.loaders.model.kernels.small_layers import (
    MAX_RELATIVE_ERROR,
    expected_product,
    packed,
    product,
    relative_error,
    rows,
)

MIN_ROWS_FOR_TILES = Int4PackKernel.MIN_ROWS_FOR_TILES  # the larger of the two
CPU, FACTS = torch.device("cpu"), DeviceFacts.of("cpu")


INT4_CASES = [
    (bits, group, act) for bits in (2, 3, 4) for group in (-1, 32, 64, 96, 128) for act in (0, 1)
]


@pytest.mark.parametrize(("bits", "group_size", "act_order"), INT4_CASES)
@pytest.mark.parametrize("count", [1, 5, MIN_ROWS_FOR_TILES])
def test_int4pack_multiplies_as_float32_does_with_the_same_weight(
    bits, group_size, act_order, count
):
    kernel = Int4PackBackend().prepare(packed(bits, group_size, act_order=bool(act_order)))
    x = rows(count)
    assert relative_error(product(kernel, x), expected_product(kernel, x)) < MAX_RELATIVE_ERROR


@pytest.mark.parametrize(("bits", "group_size", "act_order"), INT4_CASES)
def test_int4pack_holds_the_checkpoints_codes_with_scales_and_minima_rounded_once(
    bits, group_size, act_order
):
    tensors = packed(bits, group_size, act_order=bool(act_order))
    kernel = Int4PackBackend().prepare(tensors)
    groups = tensors.group_of_input()
    scales, zeros = tensors.scales().bfloat16().float(), tensors.zeros()
    levels = tensors.codes().float()
    if bits == 4:  # the kernel counts from 8, so zero points become minima, rounded too
        minima = ((8 - zeros) * scales).bfloat16().float()
        expected = ((levels - 8) * scales[groups] + minima[groups]).t()
    else:
        expected = ((levels - zeros[groups]) * scales[groups]).t()
    if kernel.input_permutation is not None:
        expected = expected[:, kernel.input_permutation]
    torch.testing.assert_close(kernel.dequantize(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("out_features", [16, 48, 64, 200])
@pytest.mark.parametrize(("backend", "bits"), [(Int4PackBackend(), 4), (Int4PlanesBackend(), 8)])
def test_block_kernels_pad_outputs_that_fill_no_block(backend, bits, out_features):
    kernel = backend.prepare(packed(bits, 64, out_features=out_features))
    for count in (3, MIN_ROWS_FOR_TILES):
        found = kernel(rows(count))
        assert found.shape == (count, out_features)
        assert relative_error(found, expected_product(kernel, rows(count))) < MAX_RELATIVE_ERROR


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("groups_at_once", [1, 2, 9])
def test_levels_are_scaled_with_one_rounding_however_many_groups_at_a_time(
    monkeypatch, dtype, groups_at_once
):
    monkeypatch.setattr(int4_blocks, "_SCALED_BYTES", groups_at_once * 32 * 48 * 4)
    generator = torch.Generator().manual_seed(5)
    levels = torch.randint(-128, 128, (3 * 32, 48), dtype=torch.int8, generator=generator)
    scales, minima = torch.randn(2, 3, 48, generator=generator).bfloat16().to(dtype)
    by_input = [each.repeat_interleave(32, dim=0).double() for each in (scales, minima)]
    # Rounded to float32 between, as sums are.
    exact = (levels.double() * by_input[0] + by_input[1]).float().to(dtype)
    scaled = int4_blocks.scale_levels(levels, scales, minima)
    assert scaled.dtype == dtype
    assert torch.equal(scaled, exact)


def test_the_layout_of_int4_blocks_is_known_on_this_cpu():
    """Otherwise prefill would run the few-row kernel; the packing would still be right."""
    assert int4_blocks.block_size() in (32, 64)


INT4_PLANES_CASES = [(group, act) for group in (-1, 32, 64, 96, 128) for act in (False, True)]


@pytest.mark.parametrize(("group_size", "act_order"), INT4_PLANES_CASES)
@pytest.mark.parametrize("count", [1, 5, MIN_ROWS_FOR_TILES])
def test_int4planes_multiplies_as_float32_does_with_the_same_weight(group_size, act_order, count):
    kernel = Int4PlanesBackend().prepare(packed(8, group_size, act_order=act_order))
    x = rows(count)
    assert relative_error(product(kernel, x), expected_product(kernel, x)) < MAX_RELATIVE_ERROR


@pytest.mark.parametrize(("group_size", "act_order"), INT4_PLANES_CASES)
def test_int4planes_holds_the_checkpoints_codes_with_scales_and_minima_rounded_once(
    group_size, act_order
):
    tensors = packed(8, group_size, act_order=act_order)
    kernel = Int4PlanesBackend().prepare(tensors)
    groups = tensors.group_of_input()
    scales, zeros = tensors.scales().bfloat16().float(), tensors.zeros()
    minima = ((136 - zeros) * scales).bfloat16().float()
    expected = ((tensors.codes().float() - 136) * scales[groups] + minima[groups]).t()
    if kernel.input_permutation is not None:
        expected = expected[:, kernel.input_permutation]
    torch.testing.assert_close(kernel.dequantize(), expected, rtol=1e-6, atol=1e-6)


def test_block_kernels_give_their_weight_where_the_layout_is_unknown(monkeypatch):
    tensors = {4: packed(4, 64), 8: packed(8, 64)}
    backends = {4: Int4PackBackend(), 8: Int4PlanesBackend()}
    kernels = {bits: backends[bits].prepare(tensors[bits]) for bits in tensors}
    known = {bits: kernel.dequantize() for bits, kernel in kernels.items()}
    monkeypatch.setattr(int4_blocks, "block_size", lambda: None)
    for bits, kernel in kernels.items():
        assert relative_error(kernel.dequantize(), known[bits]) < MAX_RELATIVE_ERROR
        x = rows(MIN_ROWS_FOR_TILES)
        assert relative_error(kernel(x), x @ known[bits].t()) < MAX_RELATIVE_ERROR


@pytest.mark.parametrize("count", [1, 5, MIN_ROWS_FOR_DENSE])
@pytest.mark.parametrize("act_order", [False, True])
def test_int8pack_multiplies_with_exact_codes_and_scales(count, act_order):
    tensors = packed(8, -1, act_order=act_order)
    kernel = Int8PackBackend().prepare(tensors)
    torch.testing.assert_close(kernel.dequantize(), tensors.dequantize(), rtol=1e-6, atol=1e-6)
    x = rows(count)
    assert relative_error(kernel(x), x @ tensors.dequantize().t()) < MAX_RELATIVE_ERROR


@pytest.mark.parametrize(("bits", "group_size"), [(8, 64), (8, 128), (4, 16), (3, 16)])
def test_fp16pack_multiplies_what_integer_kernels_refuse(bits, group_size):
    tensors = packed(bits, group_size, act_order=True)
    kernel = Fp16PackBackend().prepare(tensors)
    x = rows(5)
    assert relative_error(kernel(x), x @ tensors.dequantize().t()) < 2**-10


def test_groups_of_uneven_size_are_still_exact():
    """g_idx may be anything a quantiser wrote; the weights must not depend on its tidiness."""
    tensors = packed(4, 64)
    g_idx = torch.cat([torch.zeros(50), torch.ones(100), torch.full((106,), 3)]).to(torch.int32)
    odd = replace(tensors, stored={**tensors.stored, "g_idx": g_idx})
    kernel = Int4PackBackend().prepare(odd)
    assert relative_error(product(kernel, rows(4)), rows(4) @ odd.dequantize().t()) < 2**-10


@pytest.mark.parametrize(
    ("backend", "bits", "group_size"),
    [
        (Int4PackBackend(), 4, 32),
        (Int4PackBackend(), 3, 64),
        (Int8PackBackend(), 8, -1),
        (Int4PlanesBackend(), 8, 64),
        (Fp16PackBackend(), 8, 64),
    ],
)
def test_fused_siblings_give_their_own_outputs_side_by_side(backend, bits, group_size):
    kernels = [
        backend.prepare(packed(bits, group_size, out_features=size, seed=size))
        for size in (192, 64, 64)
    ]
    fused = kernels[0].fuse(kernels[1:])
    for count in (1, 6):
        separate = torch.cat([kernel(rows(count)) for kernel in kernels], dim=1)
        torch.testing.assert_close(fused(rows(count)), separate, rtol=1e-2, atol=1e-3)


def test_siblings_with_different_orders_groups_or_kernels_are_not_fused():
    first = Int4PackBackend().prepare(packed(4, 32, act_order=True, seed=1))
    other_order = Int4PackBackend().prepare(packed(4, 32, act_order=True, seed=2))
    other_group = Int4PackBackend().prepare(packed(4, 128))
    other_kernel = Fp16PackBackend().prepare(packed(4, 32))
    assert first.fuse([other_order]) is None
    assert Int4PackBackend().prepare(packed(4, 32)).fuse([other_group]) is None
    assert first.fuse([other_kernel]) is None
    unpadded = Int4PackBackend().prepare(packed(4, 32, out_features=48))
    assert unpadded.fuse([Int4PackBackend().prepare(packed(4, 32))]) is None


def test_a_fused_kernel_keeps_the_shared_act_order():
    tensors = packed(4, 32, act_order=True)
    kernels = [Int4PackBackend().prepare(tensors) for _ in range(2)]
    fused = kernels[0].fuse(kernels[1:])
    assert relative_error(product(fused, rows(2)), expected_product(fused, rows(2))) < 2**-7


def shape(bits, group_size, *, in_features=256, device=CPU):
    return LayerShape(PackedFormat("gptq", "gptq", bits, group_size), in_features, 192, device)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (shape(4, 128), "int4pack"),
        (shape(3, 64), "int4pack"),
        (shape(2, -1), "int4pack"),
        (shape(8, -1), "int8pack"),
        (shape(8, 256), "int8pack"),
        (shape(8, 128), "int4planes"),
        (shape(8, 16), "fp16pack"),
        (shape(8, -1, in_features=344), "fp16pack"),  # int8pack reads past its rows there
        (shape(4, 16), "fp16pack"),
        (shape(4, -1, in_features=40), "fp16pack"),
        (shape(4, 128, device=torch.device("cuda")), "triton"),
    ],
)
def test_each_layer_gets_the_fastest_backend_that_takes_it(layer, expected):
    backend, reason = resolve_backend("auto", layer)
    assert backend.name == expected
    assert reason


ACCEPTED_CASES = [
    pytest.param(backend, bits, group, inputs, id=f"{backend.name}-{bits}-{group}-{inputs}")
    for backend in BACKENDS
    for bits in (2, 3, 4, 8)
    for group in (-1, 16, 32, 96, 128, 1024)
    for inputs in (64, 96, 344, 576)
    if inputs * bits % 32 == 0  # what GPTQ can pack at all
    and kernel_rules.refusal(backend.name, PackedSize(bits, group, inputs, 192), FACTS) is None
]


@pytest.mark.parametrize(("backend", "bits", "group_size", "in_features"), ACCEPTED_CASES)
def test_a_kernel_runs_what_the_rule_says_it_takes(backend, bits, group_size, in_features):
    tensors = packed(bits, group_size, in_features=in_features, act_order=True)
    kernel, x = backend.prepare(tensors), rows(3, in_features)
    wanted = x @ tensors.dequantize().t()
    assert relative_error(product(kernel, x), wanted) < 2 * MAX_RELATIVE_ERROR


def test_a_backend_asked_for_by_name_that_refuses_says_why():
    with pytest.raises(BackendError, match="at most 4 bits, the layer has 8"):
        resolve_backend("int4pack", shape(8, 128))
    with pytest.raises(BackendError, match="choose auto or int4pack"):
        resolve_backend("marlin", shape(4, 128))


@pytest.mark.parametrize(
    ("scales", "problem"),
    [(float("nan"), "NaN"), (float("inf"), "infinite"), (0.0, "all zero")],
)
def test_scales_that_would_give_rubbish_are_refused_by_name(scales, problem):
    tensors = packed(4, 64)
    tensors.stored["scales"].fill_(scales)
    with pytest.raises(TensorError, match=rf"layer\.scales.*{problem}"):
        tensors.check_values()


@pytest.mark.parametrize("group", [-1, 4])
def test_a_group_index_out_of_range_is_refused(group):
    tensors = packed(4, 64, act_order=True)
    tensors.stored["g_idx"][7] = group
    with pytest.raises(TensorError, match=r"layer\.g_idx"):
        tensors.check_values()


@pytest.mark.parametrize("in_features", [96, 256, 576])
@pytest.mark.parametrize(
    ("backend", "bits", "group_size"),
    [
        (Int4PackBackend(), 4, 32),
        (Int4PackBackend(), 3, -1),
        (Int4PlanesBackend(), 8, 32),
        (Int8PackBackend(), 8, -1),
        (Fp16PackBackend(), 4, 32),
        (ReferenceBackend(), 4, 32),
    ],
)
def test_a_row_is_the_same_to_the_last_bit_among_as_many_as_the_kernel_says(
    backend, bits, group_size, in_features
):
    kernel = backend.prepare(packed(bits, group_size, in_features=in_features))
    limit = kernel.num_invariant_rows or 200
    x = rows(limit, in_features)
    alone = torch.cat([kernel(row.unsqueeze(0).clone()) for row in x])
    for count in {1, 2, 3, 7, 8, 9, 16, 17, 31, limit}:
        if count <= limit:
            assert torch.equal(kernel(x[:count].clone()), alone[:count]), count
            assert torch.equal(kernel(x[-count:].clone()), alone[-count:]), count


def test_the_reference_keeps_nothing_but_the_checkpoints_tensors():
    tensors = packed(4, 64, act_order=True)
    kernel = ReferenceBackend().prepare(tensors)
    assert kernel.input_permutation is None
    torch.testing.assert_close(kernel(rows(3)), rows(3) @ tensors.dequantize().t())
