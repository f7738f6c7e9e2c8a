"""Packed weights that do not agree with themselves are suspect; right ones never are."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from loaders.model.plausibility.sampling import LayerSample
from loaders.model.plausibility.statistics import describe_layer
from loaders.model.plausibility.weights import check_weights
from loaders.quantization.packed_format import PackedFormat


def quantised(name="model.layers.0.up_proj", *, bits=4, size=64, sym=False, seed=0, heavy=False):
    """Round normally distributed weights, or ones with heavy tails, to the nearest step."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(512, 32, generator=generator) * 0.02
    if heavy:
        weights = weights * torch.randn(512, 32, generator=generator).exp()
    groups = torch.arange(512) // (512 if size == -1 else size)
    grouped = weights.view(int(groups[-1]) + 1, -1, 32)
    top = 2**bits - 1
    if sym:
        scales = grouped.abs().amax(1) * 2 / top
        zeros = torch.full_like(scales, 2 ** (bits - 1))
    else:
        low, high = grouped.amin(1).clamp(max=0), grouped.amax(1).clamp(min=0)
        scales = (high - low) / top
        zeros = (-low / scales).round()
    codes = ((weights / scales[groups]).round() + zeros[groups]).clamp(0, top)
    packed = PackedFormat("gptq", "gptq", bits, size)
    return LayerSample(name, packed, codes, scales, zeros, groups)


def block(change=lambda sample: sample, count=8, **options):
    """The same layer of several blocks, each changed."""
    return [
        change(quantised(f"model.layers.{number}.up_proj", seed=number, **options))
        for number in range(count)
    ]


def suspected(samples):
    layers = [describe_layer(sample) for sample in samples]
    found = check_weights(layers)
    return {suspicion.check: suspicion.reason for suspicion in found}


@pytest.mark.parametrize(
    ("bits", "size", "sym", "heavy"),
    list(product((2, 3, 4, 8), (16, 32, 64, 128, -1), (True, False), (True, False))),
)
def test_weights_of_any_packing_are_not_suspect(bits, size, sym, heavy):
    samples = block(bits=bits, size=size, sym=sym, heavy=heavy)
    assert suspected(samples) == {}


@pytest.mark.parametrize(
    ("bits", "size", "sym", "by"), list(product((3, 4), (32, 128, -1), (True, False), (1, -1)))
)
def test_zero_points_off_by_one_are_found(bits, size, sym, by):
    samples = block(lambda one: replace(one, zeros=one.zeros + by), bits=bits, size=size, sym=sym)
    assert "gptq_v2" in suspected(samples)["zero_points_off_by_one"]


@pytest.mark.parametrize("by", [4, -3])
def test_weights_many_steps_from_nought_are_found_in_all_layers_and_in_one(by):
    off = block(lambda one: replace(one, zeros=one.zeros + by))
    assert "steps from nought" in suspected(off)["zero_points_far_off"]
    samples = block()
    samples[3] = off[3]
    assert "model.layers.3.up_proj: " in suspected(samples)["zero_points_far_off"]


def test_a_few_steps_of_eight_bits_are_little():
    samples = block(bits=8)
    samples[3] = replace(samples[3], zeros=samples[3].zeros + 4)
    assert "zero_points_far_off" not in suspected(samples)


def test_zero_points_off_by_one_in_one_layer_are_found_and_named():
    samples = block()
    samples[3] = replace(samples[3], zeros=samples[3].zeros - 1)
    assert "model.layers.3.up_proj" in suspected(samples)["zero_points_off_by_one"]


@pytest.mark.parametrize("heavy", [True, False])
@pytest.mark.parametrize("dimension", [0, 1])
def test_scales_of_other_groups_or_outputs_are_found(dimension, heavy):
    samples = block(lambda one: replace(one, scales=one.scales.roll(1, dimension)), heavy=heavy)
    assert "scales_elsewhere" in suspected(samples)


@pytest.mark.parametrize("dimension", [0, 1])
def test_zero_points_of_other_groups_or_outputs_are_found(dimension):
    samples = block(lambda one: replace(one, zeros=one.zeros.roll(1, dimension)))
    assert "zero_points_elsewhere" in suspected(samples)


def test_scattered_groups_taken_to_be_in_order_are_found():
    order = torch.randperm(512, generator=torch.Generator().manual_seed(0))
    samples = block(lambda one: replace(one, codes=one.codes[order]), size=32)
    assert {"scales_elsewhere", "zero_points_elsewhere"} <= suspected(samples).keys()
    samples = block(lambda one: replace(one, codes=one.codes[order]), size=32, sym=True)
    assert "scales_elsewhere" in suspected(samples)
    samples = block(lambda one: replace(one, codes=one.codes[order], groups=one.groups[order]))
    assert suspected(samples) == {}


def test_groups_of_very_different_sizes_in_each_output_are_not_suspect():
    """Codes then follow the scales less: correlations of -0.22 to -0.30 a layer."""

    def of_own_sizes(number):
        generator = torch.Generator().manual_seed(number)
        sizes = (0.3 * torch.randn(32, 1, 32, generator=generator)).exp()
        weights = torch.randn(32, 128, 32, generator=generator) * sizes * 0.02
        low, high = weights.amin(1).clamp(max=0), weights.amax(1).clamp(min=0)
        scales = (high - low) / 15
        zeros = (-low / scales).round()
        codes = ((weights / scales[:, None]).round() + zeros[:, None]).clamp(0, 15)
        groups = torch.arange(32 * 128) // 128
        packed = PackedFormat("gptq", "gptq", 4, 128)
        name = f"model.layers.{number}.up_proj"
        return LayerSample(name, packed, codes.view(-1, 32), scales, zeros, groups)

    samples = [of_own_sizes(number) for number in range(6)]
    assert suspected(samples) == {}


def test_another_layers_scales_are_found_and_the_layer_is_named():
    samples = block()
    samples[5] = replace(samples[5], scales=samples[2].scales)
    assert "model.layers.5.up_proj" in suspected(samples)["scales_elsewhere"]


def test_rows_of_scales_that_no_input_uses_are_found():
    samples = block(lambda one: replace(one, groups=torch.zeros_like(one.groups)))
    assert suspected(samples).keys() == {"unused_scales"}
    samples = block(lambda one: replace(one, groups=one.groups.clamp(max=6)))
    assert "1 of the rows of scales" in suspected(samples)["unused_scales"]


def test_negative_scales_are_found_but_not_scales_of_either_sign():
    samples = block(lambda one: replace(one, scales=-one.scales), sym=True)
    assert suspected(samples).keys() == {"negative_scales"}

    def signed(one):
        sign = torch.ones_like(one.scales)
        sign[:, ::2] = -1
        codes = torch.where(sign[one.groups] < 0, 16 - one.codes, one.codes).clamp(max=15)
        return replace(one, scales=one.scales * sign, codes=codes)

    assert suspected(block(signed, sym=True)) == {}


def test_weights_without_their_scales_are_out_of_range():
    samples = block(lambda one: replace(one, scales=one.scales * 30_000))
    assert "weights_out_of_range" in suspected(samples)
    samples = block(lambda one: replace(one, scales=one.scales / 30_000))
    assert "weights_out_of_range" in suspected(samples)


def test_a_layer_four_times_as_large_as_its_neighbours_is_found_but_not_a_slope():
    samples = block()
    samples[4] = replace(samples[4], scales=samples[4].scales * 4)
    assert "model.layers.4.up_proj" in suspected(samples)["unlike_its_neighbours"]
    slope = [replace(one, scales=one.scales * 2.0**number) for number, one in enumerate(block())]
    assert suspected(slope) == {}


def test_blocks_that_are_not_next_to_each_other_are_no_neighbours():
    samples = block()
    samples[4] = replace(samples[4], scales=samples[4].scales * 4)
    samples = [sample for number, sample in enumerate(samples) if number not in (3, 6)]
    assert suspected(samples) == {}


def test_blocks_that_change_nothing_are_no_neighbours_and_not_suspect():
    samples = block()
    samples[4] = replace(samples[4], codes=samples[4].zeros[samples[4].groups])
    assert "unlike_its_neighbours" not in suspected(samples)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_random_words_are_no_reason_to_doubt(bits):
    def scrambled(one):
        return replace(
            one,
            codes=torch.randint(0, 2**bits, one.codes.shape).float(),
            zeros=torch.randint(0, 2**bits, one.zeros.shape).float(),
            scales=torch.rand_like(one.scales),
        )

    assert suspected(block(scrambled, bits=bits)) == {}


def test_pruned_groups_are_no_reason_to_doubt():
    def pruned(one):
        dead = torch.rand(one.scales.shape) < 0.02
        codes = torch.where(dead[one.groups], one.zeros[one.groups], one.codes)
        return replace(one, codes=codes, scales=one.scales.masked_fill(dead, 1e-8))

    assert suspected(block(pruned)) == {}


def test_equal_scales_say_nothing_of_their_order():
    def of_one_scale(one):
        return replace(one, scales=one.scales.amax(0).expand_as(one.scales).contiguous())

    assert "scales_elsewhere" not in suspected(block(of_one_scale, sym=True))


def test_no_layers_are_no_reason_to_doubt():
    assert suspected([]) == {}
