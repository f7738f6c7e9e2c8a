"""Parts of a layer that were lost are found; pruned, padded and outlying ones are none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from loaders.model.plausibility.parts import check_parts, describe_parts
from loaders.model.plausibility.sampling import LayerSample
from loaders.quantization.packed_format import PackedFormat

INPUTS, OUTPUTS = 512, 32


def quantised(*, bits=4, size=64, seed=0, change=lambda weights: weights):
    """Round normally distributed weights to the nearest step of their group."""
    generator = torch.Generator().manual_seed(seed)
    weights = change(torch.randn(INPUTS, OUTPUTS, generator=generator) * 0.02)
    size = INPUTS if size == -1 else size
    groups, grouped = torch.arange(INPUTS) // size, weights.view(-1, size, OUTPUTS)
    middle = 2 ** (bits - 1)
    scales = grouped.abs().amax(1).clamp(min=1e-8) * 2 / (2**bits - 1)
    codes = ((weights / scales[groups]).round() + middle).clamp(0, 2**bits - 1)
    zeros = torch.full_like(scales, middle)
    packed = PackedFormat("gptq", "gptq", bits, size)
    return LayerSample("model.layers.0.up_proj", packed, codes, scales, zeros, groups)


def suspected(*samples):
    found = check_parts([describe_parts(sample) for sample in samples])
    return {suspicion.check: suspicion.reason for suspicion in found}


def set_rows(tensor, rows, value):
    changed = tensor.clone()
    changed[rows] = value
    return changed


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [16, 64, -1])
def test_parts_of_right_weights_are_not_suspect(bits, size):
    assert suspected(*[quantised(bits=bits, size=size, seed=seed) for seed in range(4)]) == {}


@pytest.mark.parametrize("size", [16, -1])
@pytest.mark.parametrize("value", [0, 15])
@pytest.mark.parametrize("part", [slice(256, None), slice(100, 120)])
def test_codes_of_one_value_for_all_outputs_or_inputs_are_found(size, value, part):
    sample = quantised(size=size)
    lost = replace(sample, codes=set_rows(sample.codes, part, value))
    assert suspected(quantised(), lost).keys() == {"constant_parts"}
    outputs = set_rows(sample.codes.t(), slice(16, None), value).t()
    assert "constant_parts" in suspected(replace(sample, codes=outputs))


def test_scales_of_zero_beside_codes_that_vary_are_found():
    sample = quantised()
    lost = replace(sample, scales=set_rows(sample.scales, slice(4, None), 0))
    assert "scales of 4 groups" in suspected(lost)["scales_lost"]
    empty = quantised(change=lambda weights: set_rows(weights, slice(256, None), 0))
    assert suspected(replace(empty, scales=set_rows(empty.scales, slice(4, None), 0))) == {}


@pytest.mark.parametrize("factor", [50, 1 / 50])
@pytest.mark.parametrize("size", [32, 256])
def test_a_group_far_larger_or_smaller_than_the_others_is_found(factor, size):
    sample = quantised(size=size)
    lost = replace(sample, scales=set_rows(sample.scales, 1, sample.scales[1] * factor))
    assert "scales seem to be damaged" in suspected(lost)["groups_out_of_line"]


@pytest.mark.parametrize("factor", [10, 0.1])
def test_groups_ten_times_as_large_or_small_are_weights_as_they_may_be(factor):
    sample = quantised(change=lambda weights: set_rows(weights, slice(64), weights[:64] * factor))
    assert suspected(sample) == {}


def test_pruned_padded_and_outlying_weights_are_none():
    def change(weights):
        weights = set_rows(weights, slice(300, None), 0)  # padding
        weights[5] *= 30  # an input that is an outlier
        weights[:, 7] = 0  # a pruned output
        weights[70, 3] = 2.0  # a hundred times the usual
        return weights

    assert suspected(quantised(change=change)) == {}
