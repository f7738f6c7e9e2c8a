"""Grouped weights made of one layer or of several."""

from dataclasses import replace

import pytest
import torch

from loaders.quantization.packed_format import PackedFormat
from loaders.quantization.packed_tensors import PackedTensors, grouped_jointly
from loaders.quantization.packing import pack_awq, pack_gptq_codes, pack_gptq_zeros

INPUTS = 256


def gptq(out_features, *, bits=4, group_size=64, order=None, seed=0):
    """order: [in]: sorted position → input; None leaves g_idx out."""
    generator = torch.Generator().manual_seed(seed)
    groups = INPUTS // group_size

    def random(shape):
        return torch.randint(0, 2**bits, shape, dtype=torch.uint8, generator=generator)

    stored = {
        "qweight": pack_gptq_codes(random((INPUTS, out_features)), bits),
        "qzeros": pack_gptq_zeros(random((groups, out_features)), bits, checkpoint_format="gptq"),
        "scales": (torch.rand(groups, out_features, generator=generator) + 0.1).half(),
    }
    if order is not None:
        stored["g_idx"] = torch.empty(INPUTS, dtype=torch.int32)
        stored["g_idx"][order] = (torch.arange(INPUTS) // group_size).int()
    return PackedTensors(
        f"layer {out_features}",
        PackedFormat("gptq", "gptq", bits, group_size),
        INPUTS,
        out_features,
        stored,
    )


ORDER = torch.randperm(INPUTS, generator=torch.Generator().manual_seed(3))
OTHER = ORDER.flip(0)


@pytest.mark.parametrize("order", [None, ORDER], ids=["in order", "act order"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_joined_weight_holds_each_layers_outputs(order, bits):
    parts = [gptq(size, bits=bits, order=order, seed=size) for size in (320, 64, 96)]
    weight = grouped_jointly(parts)
    assert (weight.out_features, weight.in_features) == (480, INPUTS)
    expected = torch.cat([part.dequantize() for part in parts])
    if order is not None:
        expected = expected[:, weight.input_permutation]
    assert torch.equal(weight.dequantize(), expected)
    assert weight.codes.is_contiguous()


@pytest.mark.parametrize("order", [None, ORDER], ids=["in order", "act order"])
def test_outputs_come_in_the_order_that_is_asked_for(order):
    parts = [gptq(320, order=order, seed=seed) for seed in (1, 2)]
    wanted = torch.randperm(320, generator=torch.Generator().manual_seed(4))
    weight = grouped_jointly(parts, wanted)
    plain = [part.to_grouped().dequantize()[wanted] for part in parts]
    assert torch.equal(weight.dequantize(), torch.cat(plain))


def test_orders_are_compared_by_value():
    one, same = gptq(64, order=ORDER), gptq(96, order=ORDER.clone())
    assert one.can_stand_beside(same)
    assert not one.can_stand_beside(gptq(64, order=OTHER))
    assert not one.can_stand_beside(gptq(64))
    assert not gptq(64).can_stand_beside(one)
    # Sorted within its groups it is no order at all.
    assert gptq(64).can_stand_beside(gptq(64, order=torch.arange(INPUTS)))


def test_other_bits_and_other_groups_cannot_stand_beside_each_other():
    one = gptq(64)
    assert not one.can_stand_beside(gptq(64, bits=8))
    assert not one.can_stand_beside(gptq(64, group_size=128))
    with pytest.raises(ValueError, match="layer 64 and layer 96 differ in bits, group size"):
        grouped_jointly([one, gptq(96, group_size=128)])


def test_one_group_is_one_group_whatever_the_settings_call_it():
    whole, large = gptq(64, group_size=INPUTS), gptq(64, group_size=INPUTS)
    whole = replace(whole, format=replace(whole.format, group_size=-1))
    large = replace(large, format=replace(large.format, group_size=1024))
    assert whole.can_stand_beside(large)
    assert grouped_jointly([whole, large]).group_size == INPUTS


@pytest.mark.parametrize("out_features", [32, 40, 64, 264, 320])
def test_pieces_are_all_codes_once(out_features):
    codes = torch.randint(0, 16, (INPUTS, out_features), dtype=torch.uint8)
    packed = PackedTensors(
        "layer",
        PackedFormat("awq", "gemm", 4, 64),
        INPUTS,
        out_features,
        {"qweight": pack_awq(codes)},
    )
    pieces = list(packed.codes_by_pieces())
    assert [outputs.start for outputs, _ in pieces[1:]] == [out.stop for out, _ in pieces[:-1]]
    assert torch.equal(torch.cat([piece for _, piece in pieces], dim=1), codes)
    assert all(outputs.start % 32 == 0 for outputs, _ in pieces)


@pytest.mark.parametrize("last", [5, 6])
def test_a_constant_layer_is_one_in_all_of_its_pieces(last):
    codes = torch.full((INPUTS, 320), 5, dtype=torch.uint8)
    codes[-1, -1] = last
    packed = gptq(320)
    packed.stored["qweight"] = pack_gptq_codes(codes, 4)
    assert packed.is_constant() == (last == 5)
